"""The tensors under every architecture: batch layout, paged attention, KV cache, linear layers, number formats.

No architecture is in here."""
