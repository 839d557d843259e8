"""Unlearning in many languages at once (Choi, Min & Choo 2024).

`experiments/lingtea.py` runs it.
"""
