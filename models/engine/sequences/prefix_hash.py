"""Hashes of full KV blocks: equal hashes mean equal keys and values. It knows tokens and digests, not blocks.

    salt ──▶ root ──┬─▶ hash 0 ──┬─▶ hash 1 ──▶ …        each: digest of the previous hash and the block's tokens
          tokens 0 ─┘  tokens 1 ─┘

A block's keys and values depend on all tokens before it, and so does its hash. The salt is part of every hash: requests
with different salts share no blocks, so a tenant cannot find out another tenant's prompts by timing its guesses. The
digests are cryptographic and 128 bits long; tokens are not compared again when a hash is found.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

HASH_BYTES = 16


class BlockHasher:
    """The hashes of one request's full blocks, computed when they are needed."""

    def __init__(self, salt: str) -> None:
        self._root = blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"salt").digest()
        self._hashes: list[bytes] = []

    def first(self, count: int, prompt: Sequence[int], output: Sequence[int], block_tokens: int) -> list[bytes]:
        """Return the hashes of the first ``count`` blocks of ``prompt`` and ``output`` together."""
        hashes = self._hashes
        while len(hashes) < count:
            tokens = slice_of(prompt, output, len(hashes) * block_tokens, (len(hashes) + 1) * block_tokens)
            parent = hashes[-1] if hashes else self._root
            hashes.append(blake2b(parent + array("q", tokens).tobytes(), digest_size=HASH_BYTES).digest())
        return hashes[:count]


def slice_of(prompt: Sequence[int], output: Sequence[int], begin: int, end: int) -> tuple[int, ...]:
    """Return tokens ``begin`` up to ``end`` of ``prompt`` followed by ``output``."""
    num_prompt = len(prompt)
    if end <= num_prompt:
        return tuple(prompt[begin:end])
    return (*prompt[begin:end], *output[max(0, begin - num_prompt) : end - num_prompt])
