"""Text to token ids and back: tokenizer, chat template, context window.

No torch, so the API counts tokens exactly as the worker will render them.
"""
