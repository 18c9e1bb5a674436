"""Benchmarks of barlow_fast: `python -m bench --help` from the repository root; see README.md."""
