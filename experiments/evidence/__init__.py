"""What tells an unlearned model from one that never knew."""
