"""Unlearning in many languages (Choi et al. 2024): `python -m experiments.lingtea.run`."""
