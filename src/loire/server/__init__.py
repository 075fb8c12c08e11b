"""HTTP: the OpenAI API, over any engine that looks like AsyncLLM."""
