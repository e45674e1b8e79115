"""Parts of `benchmarks/credit.py`."""
