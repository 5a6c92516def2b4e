"""What goes into a transcriber with each chunk, and what comes out, as plain numbers. No torch.

A transcriber is an ``Encoder`` whose vector of a chunk is its transcript: little-endian int32.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """The options of a request: the samples of each chunk as little-endian float32, and the language.

    The samples have the model's rate. ``language``: an ISO 639-1 code; None: the model detects it, if it can.
    """

    chunks: tuple[bytes, ...]
    language: str | None = None


@dataclass(frozen=True, slots=True)
class TokenSegment:
    """The text tokens between two times, which are milliseconds from the beginning of the chunk."""

    start_ms: int
    end_ms: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChunkTranscript:
    """The transcript of a chunk. ``language_id``: the token of its language; 0 if the model has none."""

    language_id: int = 0
    segments: tuple[TokenSegment, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The transcript as numbers: the language, then start, end, number of tokens and tokens of each segment."""
        found = [self.language_id]
        for segment in self.segments:
            found += (segment.start_ms, segment.end_ms, len(segment.tokens), *segment.tokens)
        return tuple(found)

    @property
    def as_bytes(self) -> bytes:
        """The numbers as little-endian int32."""
        numbers = self.numbers
        return struct.pack(f"<{len(numbers)}i", *numbers)

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Self:
        """Read ``numbers``. Raises ValueError for what is none."""
        if not numbers:
            raise ValueError("a transcript has at least one number")
        segments: list[TokenSegment] = []
        at = 1
        while at < len(numbers):
            start, end, count = (*numbers[at : at + 3], -1, -1, -1)[:3]
            tokens = tuple(numbers[at + 3 : at + 3 + max(0, count)])
            if len(tokens) != count:
                raise ValueError("a segment is cut off")
            segments.append(TokenSegment(start, end, tokens))
            at += 3 + count
        return cls(numbers[0], tuple(segments))

    @classmethod
    def from_bytes(cls, packed: bytes) -> Self:
        """Read ``as_bytes``."""
        return cls.of(struct.unpack(f"<{len(packed) // 4}i", packed))
