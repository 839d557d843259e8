"""The tests of `interp`, in its own order; those of the papers stand beside them."""
