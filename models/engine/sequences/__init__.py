"""The state of active requests: tokens, text and block hashes of a sequence, and stop strings.

The tensors of a request are the runner's.
"""
