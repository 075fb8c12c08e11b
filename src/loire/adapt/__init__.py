"""Repairing by training: an adapter that makes a quantized model say what it said before."""
