"""From a registered version to a runner: weights, number format, size of the KV cache, quality checks.

Architectures are in ``models.families``."""
