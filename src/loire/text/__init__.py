"""Text and token ids: tokenizers, chat templates, detokenization, stop strings. No torch."""
