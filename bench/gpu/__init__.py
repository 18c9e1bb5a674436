"""Measuring and testing on a CUDA device: `python -m bench.gpu --help`; see bench/README.md.

Runs from the source tree, needs torch alone, and continues where it stopped.
"""
