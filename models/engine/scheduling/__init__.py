"""What runs in the next step: the scheduler, the prefill budget, packing of inputs, expected output lengths.

Blocks are ``models.engine.kv``."""
