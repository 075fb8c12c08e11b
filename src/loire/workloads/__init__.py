"""Loads for the engine, and what is learned by running them."""
