"""The bars of the house, one module each; `benchmarks/house.py` prints them all."""
