"""Texts as recognisers read them: odd digits, spaces and dashes as plain ones, and what cannot be seen left out.

A view is never shown to anybody; its places are places of the text that it was made of.
"""

import unicodedata
from dataclasses import dataclass

from policy.escapes import STAND_INS

_INVISIBLE = frozenset(
    [
        0xAD,
        0x180E,
        0xFEFF,
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2065),
        *range(0x2066, 0x206A),
    ]
)
_DASHES = frozenset([*range(0x2010, 0x2016), 0x2043, 0x2212, 0x30FC, 0xFE58, 0xFE63, 0xFF0D])
_LINE_ENDS = frozenset([0x85, 0x2028, 0x2029])
_ALIKE: dict[int, str | None] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(_LINE_ENDS, "\n"),
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys(_INVISIBLE),
    **STAND_INS,
}


class _Table(dict[int, str | None]):
    """What each character reads as, worked out when it is first met. None: nothing."""

    def __missing__(self, code: int) -> str | None:
        read = self[code] = _read(code)
        return read


def _read(code: int) -> str | None:
    if code in _ALIKE:
        return _ALIKE[code]
    character = chr(code)
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.digit(character))
        case "Zs":
            return " "
        case "Cs":
            # Half of a pair, which cannot be encoded.
            return "\ufffd"
        case _:
            return character


_TABLE = _Table()


@dataclass(frozen=True, slots=True)
class View:
    """``text`` as it is read. ``places`` gives each of its characters' place in the original; None: the same."""

    text: str
    num_original: int
    places: list[int] | None = None

    def original(self, place: int) -> int:
        """Where the character at ``place`` stands in the original; its length for the end."""
        if self.places is None:
            return place
        return self.places[place] if place < len(self.places) else self.num_original

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return what of the original the characters from ``start`` to ``end`` were read from."""
        return self.original(start), self.original(end - 1) + 1


def view(text: str) -> View:
    """Read a text."""
    if text.isascii():
        return View(text, len(text))
    read = text.translate(_TABLE)
    if len(read) == len(text):
        return View(read, len(text))
    places = [place for place, character in enumerate(text) if _TABLE[ord(character)] is not None]
    return View(read, len(text), places)
