"""What a voice is asked for: a piece of a text. A voice is an ``Encoder`` whose vector of a piece is its samples."""

from dataclasses import dataclass
from typing import Final

PIECE_TOKENS: Final = 256
"""Each piece counts as so many tokens in the engine, and a pass has no more: a pass is one piece."""


@dataclass(frozen=True, slots=True)
class Saying:
    """A piece of a text, as ``sentences.pieces_of`` cuts it. ``speed``: 1 is the voice's own."""

    text: str
    voice: str
    speed: float
