"""V becomes U: fine-tuning a model so that it forgets."""
