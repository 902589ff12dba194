"""Figures that the enclave has to hold under load: `python -m tests.soak` prints each, and what is wanted."""
