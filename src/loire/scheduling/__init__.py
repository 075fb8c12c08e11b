"""Who computes how many tokens in each step. Plain Python, tested without a model."""
