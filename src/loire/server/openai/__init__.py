"""OpenAI's API, with the routes and fields that vLLM adds to it."""
