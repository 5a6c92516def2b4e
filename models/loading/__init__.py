"""From a registered version to a runner: weights, number format, memory for the cache, checks of quality.

Architectures are ``models.families``."""
