"""The heart: the unlearned model, put back together part by part."""
