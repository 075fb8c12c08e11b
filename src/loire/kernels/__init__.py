"""The few operations that cost time, behind one interface (loire.kernels.interface).

reference.py is their definition in plain torch, on any device; other backends must agree with it.
"""
