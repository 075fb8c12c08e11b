"""HTTP: the APIs of OpenAI and Anthropic over an engine, guarded and watched; the page."""
