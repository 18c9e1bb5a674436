"""What `python -m bench loss` times, how, and its tables."""
