"""The request for a run: configuration, categories in words, prompts."""
