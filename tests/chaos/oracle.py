"""The expected answers of the fake model: an independent implementation, a function of the prompt alone.

Imports nothing from the product; a test compares both implementations.
"""

import hashlib
import struct

_VOCABULARY = (
    "a the water wheel river stone bridge mill gate channel stream turns holds carries rises falls waits flows under "
    "over past into from slow quick bright cold deep still open old new first last every morning evening hill valley "
    "field road house light grain bread hand rope oak iron spring winter and while until"
)
WORDS = _VOCABULARY.split()


def answer(prompt: str, max_tokens: int, *, ends: bool = True) -> str:
    """Return the answer to a raw prompt, at most ``max_tokens`` bytes of it: one byte is one token."""
    ids = list(prompt.encode())
    natural = 8 + _digest(ids) % 120
    said = ""
    while len(said) < max_tokens:
        word = WORDS[_digest(ids, list(said.encode())) % len(WORDS)]
        said += word
        if ends and len(said) >= natural:
            return said[:max_tokens]
        said += " "
    return said[:max_tokens]


def _digest(*parts: list[int]) -> int:
    packed = b"".join(struct.pack(f"={len(part) + 1}q", len(part), *part) for part in parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")
