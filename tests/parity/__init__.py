"""Live comparisons with transformers and peft on random small models.

Needs the `parity` extra; without it this folder fails, it does not skip. Run by `make parity`.
"""
