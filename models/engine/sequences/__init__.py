"""The state of active requests: tokens and text of a sequence, hashes of its blocks, stop strings, stream throttle.

The tensors of a request are the runner's.
"""
