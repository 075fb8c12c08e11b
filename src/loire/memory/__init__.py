"""Bookkeeping of KV memory: which block holds what for whom. No tensors, no torch."""
