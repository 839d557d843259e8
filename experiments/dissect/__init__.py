"""Dissecting fine-tuning unlearning (Hong et al. 2024): `python -m experiments.dissect.run`."""
