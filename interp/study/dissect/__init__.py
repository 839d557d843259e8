"""Where fine-tuning unlearning happens (Hong et al. 2024). `experiments/dissect.py` runs it."""
