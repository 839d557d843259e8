"""MEMIT for removal (Meng et al. 2023): facts are edited out of down projections in closed form."""
