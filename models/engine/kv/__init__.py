"""The KV cache as block numbers: free, cached and shared blocks, and the block table of each sequence.

The tensors are ``models.tensors.kv_cache``.
"""
