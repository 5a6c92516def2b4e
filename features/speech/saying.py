"""A voice, and the encoder that lets the engine run it: pieces of texts in, samples out as each is said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.models.engine.requests import EncodeRow

PIECE_TOKENS: Final = 256
"""Each piece counts as so many tokens in the engine, and a pass has no more: so a pass is the next piece of a job."""

_SAID: Final = b"said"


@dataclass(frozen=True, slots=True)
class Saying:
    """A piece of a text, as ``sentences.pieces_of`` cuts it. ``speed``: 1 is the voice's own."""

    text: str
    voice: str
    speed: float


class Voice(Protocol):
    """What says pieces."""

    def say(self, saying: Saying) -> bytes | None:
        """Return the samples (``sound``), at least one; None if they are no numbers. Raises EngineError."""
        ...


@dataclass(frozen=True, slots=True)
class Telling:
    """The options of a request: its pieces, and who hears the samples of each, in order, on the engine's thread.

    ``is_over``: the request has ended, so the rest need not be said.
    """

    pieces: Sequence[Saying]
    heard: Callable[[bytes], None]
    is_over: Callable[[], bool]


class VoiceEncoder:
    """An ``Encoder`` of pieces. Their samples go to ``Telling.heard``, as a request gets its vectors at its end."""

    context_window = PIECE_TOKENS

    def __init__(self, voice: Voice) -> None:
        self._voice = voice

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Say the pieces of the rows."""
        return [self._said(row.options, row.index) for row in rows]

    def _said(self, telling: Telling, index: int) -> bytes | None:
        if not telling.is_over():
            samples = self._voice.say(telling.pieces[index])
            if samples is None:
                return None
            telling.heard(samples)
        return _SAID
