"""Model files: what they say of a model, read with every length checked. No torch."""
