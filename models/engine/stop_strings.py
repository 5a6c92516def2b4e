"""Stop strings across token borders: finds where a request's text ends, and holds back text that may begin a stop.

... released ... | held: the longest end of the text that may still become a stop string |
"""

from collections.abc import Iterable
from typing import Protocol


class TokenDecoder(Protocol):
    """Turns one request's tokens into text, never half a character. Implemented by ``prompts.tokenizer``."""

    def add(self, token_id: int) -> str:
        """Append the next token and return the text that became certain."""
        ...

    def flush(self) -> str:
        """Return the text that was still uncertain. Nothing is added afterwards."""
        ...


class StopFilter:
    """Passes text up to the first complete stop string.

    The first stop string is the one that ends first, so the result does not depend on how the text was cut into pieces.
    Of two that end together the longer one wins.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """True after a complete stop string, which is ``found``."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """Append text, and return the part that is certainly before a stop string. Nothing follows a stop."""
        if self.stopped:
            return ""
        text = self._held + text
        cut = self._first_stop(text)
        if cut is not None:
            self.found = text[cut]
            self._held = ""
            return text[: cut.start]
        certain = len(text) - self._num_held(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """Return the held text at the end: it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> slice | None:
        """Return where the first complete stop string stands."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        end, start = min(found)
        return slice(start, end)

    def _num_held(self, text: str) -> int:
        """Return the length of the longest end of ``text`` with which a stop string begins."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    lengths = range(min(len(stop), len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


class OutputText:
    """The text of one request's output: tokens in, text that may be shown out."""

    def __init__(self, detokenizer: TokenDecoder, stops: Iterable[str]) -> None:
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops)
        self._is_answer = True

    @property
    def stopped(self) -> bool:
        """True after a complete stop string."""
        return self._filter.stopped

    @property
    def stop_text(self) -> str | None:
        """The stop string that ended the text; None before the end and for another end."""
        return self._filter.found

    def add(self, token_id: int, *, is_answer: bool = True) -> str:
        """Append the next token and return the text that may be shown now. Stop strings count in the answer only."""
        return self._passed(self._detokenizer.add(token_id), is_answer)

    def add_text(self, text: str, *, is_answer: bool = True) -> str:
        """Append text that has no tokens, and return the text that may be shown now."""
        return self._passed(text, is_answer)

    def flush(self) -> str:
        """Return the rest of the text at the end of the request. The rest may complete a stop string."""
        return self._passed(self._detokenizer.flush(), self._is_answer) + self._filter.flush()

    def _passed(self, text: str, is_answer: bool) -> str:
        self._is_answer = is_answer
        return self._filter.feed(text) if is_answer else text
