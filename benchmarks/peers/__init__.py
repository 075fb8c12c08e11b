"""Other inference engines, each in a process of its own, for `benchmarks/peers.py`."""
