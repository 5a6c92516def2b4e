"""Texts as recognisers read them: odd digits, spaces and dashes as plain ones, and what cannot be seen left out.

A view is never shown to anybody; its places are places of the text that it was made of. Each character is read by
itself, but for accents: one behind a letter is that letter's, any other only hides what it stands on.
"""

import re
import unicodedata
from dataclasses import dataclass

from policy.text.escapes import STAND_INS

# Unicode's Default_Ignorable_Code_Point, and the frames that are put around a character.
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
# Marks of no script. Of these are parts of letters:
_MARKS = frozenset([*range(0x300, 0x370), *range(0x1AB0, 0x1B00), *range(0x1DC0, 0x1E00), *range(0x20D0, 0x2100)])
_ACCENTS = frozenset(
    [
        *(*range(0x300, 0x305), *range(0x306, 0x30D), 0x30F, 0x311, 0x313, 0x314, 0x31B, *range(0x323, 0x329)),
        *(0x32D, 0x32E, 0x330, 0x331, 0x342, 0x345),
    ]
)
_ACCENT = re.compile(f"[{''.join(map(chr, sorted(_ACCENTS)))}]")
# Of one character, by its decomposition: bold and italic, wide, small.
_FONTS = ("<font>", "<wide>", "<small>")
_ALIKE: dict[int, str | None] = {
    **dict.fromkeys(_LINE_ENDS, "\n"),
    **dict.fromkeys(_MARKS - _ACCENTS),
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
            return _plain(character)


def _plain(character: str) -> str:
    """Return the ASCII character that this one is another drawing of; itself if there is none."""
    if unicodedata.decomposition(character).startswith(_FONTS):
        plain = unicodedata.normalize("NFKC", character)
        return plain if plain.isascii() and len(plain) == 1 else character
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


def view(text: str, before: str = "") -> View:
    """Read a text; ``before`` is how what stands before it was read."""
    if text.isascii():
        return View(text, len(text))
    read = text.translate(_TABLE)
    places = None
    if len(read) != len(text):
        places = [place for place, character in enumerate(text) if _TABLE[ord(character)] is not None]
    if _ACCENT.search(read) is None:
        return View(read, len(text), places)
    kept = _without_strays(read, before[-1:])
    if len(kept) == len(read):
        return View(read, len(text), places)
    return View("".join(read[at] for at in kept), len(text), kept if places is None else [places[at] for at in kept])


def _without_strays(read: str, before: str) -> list[int]:
    """Return the places of what is no accent, or one behind a letter."""
    kept = []
    for at, character in enumerate(read):
        if _ACCENT.match(character) and not (before.isalpha() or _ACCENT.match(before)):
            continue
        kept.append(at)
        before = character
    return kept


def is_of_word(character: str) -> bool:
    """True for letters, their accents, and digits."""
    return character.isalnum() or _ACCENT.match(character) is not None
