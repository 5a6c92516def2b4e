"""Text to token ids and back: tokenizer, chat template, context window. No torch, so the API can count as the worker does."""
