"""Capacity arithmetic: what fits into a memory and how fast it can be. No torch, no model."""
