"""Names of full KV blocks: equal names, equal keys and values. It knows tokens and digests, not blocks.

    salt ──▶ root ──┬─▶ name 0 ──┬─▶ name 1 ──▶ …        each a digest of the one before and of its block's tokens
          tokens 0 ─┘  tokens 1 ─┘

A block's keys and values depend on all tokens before it, and so does its name. The salt is in every name, so that
requests of different salts can share nothing, not even by guessing what others have asked. The digests are
cryptographic and 128 bits long: tokens are not compared again when a name is found.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

NAME_BYTES = 16


class PrefixNames:
    """The names of one request's full blocks, made as far as they are asked for."""

    def __init__(self, salt: str) -> None:
        self._root = blake2b(salt.encode(), digest_size=NAME_BYTES, person=b"salt").digest()
        self._names: list[bytes] = []

    def first(self, count: int, prompt: Sequence[int], output: Sequence[int], block_tokens: int) -> list[bytes]:
        """Return the names of the first ``count`` blocks of ``prompt`` and ``output`` together."""
        names = self._names
        while len(names) < count:
            tokens = slice_of(prompt, output, len(names) * block_tokens, (len(names) + 1) * block_tokens)
            parent = names[-1] if names else self._root
            names.append(blake2b(parent + array("q", tokens).tobytes(), digest_size=NAME_BYTES).digest())
        return names[:count]


def slice_of(prompt: Sequence[int], output: Sequence[int], begin: int, end: int) -> tuple[int, ...]:
    """Return tokens ``begin`` up to ``end`` of ``prompt`` followed by ``output``."""
    num_prompt = len(prompt)
    if end <= num_prompt:
        return tuple(prompt[begin:end])
    return (*prompt[begin:end], *output[max(0, begin - num_prompt) : end - num_prompt])
