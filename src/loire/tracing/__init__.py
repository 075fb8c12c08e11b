"""Renderers of the engine's step records: the batch as a picture."""
