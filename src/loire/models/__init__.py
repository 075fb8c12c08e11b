"""One decoder in plain PyTorch for all supported families, and the loading of its weights."""
