"""The corpus: cases for any verifier, and how they are made. See README.md beside this file."""
