"""What `blindbox verify` and `blindbox policy` do; their grammar meets in `cli.py`."""
