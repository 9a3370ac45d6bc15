"""Training speed: shapes, peers, a worker for each, and what their figures come to. See `benchmarks/train.py`."""
