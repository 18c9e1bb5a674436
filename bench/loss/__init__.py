"""What `python -m bench loss` times, how, and how it is told."""
