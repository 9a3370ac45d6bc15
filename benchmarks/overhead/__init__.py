"""The parts of `benchmarks/overheads.py`."""
