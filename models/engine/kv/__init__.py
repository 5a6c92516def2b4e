"""The KV cache as block numbers: which blocks are free, shared or cached, and the block table of each sequence.

The tensors are ``models.tensors.kv_cache``."""
