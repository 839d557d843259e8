"""False facts across languages (Lu & Koehn 2024): `python -m experiments.cross_lingual.run`."""
