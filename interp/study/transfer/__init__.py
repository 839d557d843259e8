"""A behaviour trained away in English (Neplenbroek et al. 2025).

`experiments/transfer.py` runs it.
"""
