"""Behaviour trained away in English: `python -m experiments.transfer.run`."""
