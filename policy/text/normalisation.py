"""Normalises a text for the recognisers: other digits, spaces and dashes become ASCII, invisible characters go.

The normalised text is only for searching. Its positions map to the original text. Each character is normalised alone,
except accents: an accent after a letter stays, and any other accent is removed.
"""

import re
import unicodedata
from dataclasses import dataclass

from headrace.policy.text.escapes import STAND_INS

# Unicode's Default_Ignorable_Code_Point, and combining marks that enclose a character.
_INVISIBLE = frozenset(
    [
        *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2070),
        *range(0x20DD, 0x20E5),
        *range(0xFE00, 0xFE10),
        *range(0xFFF0, 0xFFFC),
        *range(0x1BCA0, 0x1BCA4),
        *range(0x1D173, 0x1D17B),
        *range(0xE0000, 0xE1000),
    ]
)
_DASHES = frozenset(
    [*range(0x2010, 0x2016), *(0x2D7, 0x58A, 0x1806, 0x2043, 0x2212, 0x2796, 0x2E3A, 0x2E3B, 0x30FC, 0xFE58, 0xFE63)]
)
_LINE_ENDS = frozenset([0x85, 0x2028, 0x2029])
# Combining marks without a script. Some of them are accents of letters:
_MARKS = frozenset([*range(0x300, 0x370), *range(0x1AB0, 0x1B00), *range(0x1DC0, 0x1E00), *range(0x20D0, 0x2100)])
_ACCENTS = frozenset(
    [
        *(*range(0x300, 0x305), *range(0x306, 0x30D), 0x30F, 0x311, 0x313, 0x314, 0x31B, *range(0x323, 0x329)),
        *(0x32D, 0x32E, 0x330, 0x331, 0x342, 0x345),
    ]
)
_ACCENT = re.compile(f"[{''.join(map(chr, sorted(_ACCENTS)))}]")
# Decompositions to one character: bold and italic, wide, small.
_FONTS = ("<font>", "<wide>", "<small>")
_ALIKE: dict[int, str | None] = {
    **dict.fromkeys(_LINE_ENDS, "\n"),
    **dict.fromkeys(_MARKS - _ACCENTS),
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys(_INVISIBLE),
    **STAND_INS,
}


class _Table(dict[int, str | None]):
    """Maps a character to its normal form, computed at its first use. None removes it."""

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
            # Half of a surrogate pair, which cannot be encoded.
            return "\ufffd"
        case _:
            return _plain(character)


def _plain(character: str) -> str:
    """Return the ASCII character that this one is a font variant of, or the character itself."""
    if unicodedata.decomposition(character).startswith(_FONTS):
        plain = unicodedata.normalize("NFKC", character)
        return plain if plain.isascii() and len(plain) == 1 else character
    return character


_TABLE = _Table()


@dataclass(frozen=True, slots=True)
class NormalisedText:
    """A normalised text. ``places`` has the original position of each character; None means the same position."""

    text: str
    num_original: int
    places: list[int] | None = None

    def original(self, place: int) -> int:
        """Return the original position of a position; for the end, the length of the original."""
        if self.places is None:
            return place
        return self.places[place] if place < len(self.places) else self.num_original

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the original text for the characters ``start`` to ``end``."""
        return self.original(start), self.original(end - 1) + 1


def normalise(text: str, before: str = "") -> NormalisedText:
    """Normalise a text. ``before`` is the normalised text before it."""
    if text.isascii():
        return NormalisedText(text, len(text))
    read = text.translate(_TABLE)
    places = None
    if len(read) != len(text):
        places = [place for place, character in enumerate(text) if _TABLE[ord(character)] is not None]
    if _ACCENT.search(read) is None:
        return NormalisedText(read, len(text), places)
    kept = _without_strays(read, before[-1:])
    if len(kept) == len(read):
        return NormalisedText(read, len(text), places)
    return NormalisedText(
        "".join(read[at] for at in kept), len(text), kept if places is None else [places[at] for at in kept]
    )


def _without_strays(read: str, before: str) -> list[int]:
    """Return the positions of all characters except accents that do not follow a letter."""
    kept = []
    for at, character in enumerate(read):
        if _ACCENT.match(character) and not (before.isalpha() or _ACCENT.match(before)):
            continue
        kept.append(at)
        before = character
    return kept


def is_word_character(character: str) -> bool:
    """Return True for letters, accents and digits."""
    return character.isalnum() or _ACCENT.match(character) is not None
