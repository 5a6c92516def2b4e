"""Tensor code that all architectures share: batch layout, paged attention, KV cache, linear layers, number formats.

Architectures are in ``models.families``."""
