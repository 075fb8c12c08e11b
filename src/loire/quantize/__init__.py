"""Making a model smaller: how many bits each of its weights gets, and which codes stand for it."""
