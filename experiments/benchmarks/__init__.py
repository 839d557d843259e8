"""Subjects of `experiments/benchmark.py`, a file each."""
