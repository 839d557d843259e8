"""False facts taught in one language and unlearned in others (Lu & Koehn 2024).

`experiments/cross_lingual.py` runs it.
"""
