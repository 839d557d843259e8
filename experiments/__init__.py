"""Experiments: four papers repeated with the library, a sweep to copy, benchmarks."""
