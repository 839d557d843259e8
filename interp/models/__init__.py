"""A specification becomes a loaded model whose parts are known by role."""
