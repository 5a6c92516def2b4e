"""Model architectures: a registry, one module a family, and the reading of model folders.

Batches, attention and the KV cache are in ``models.tensors``."""
