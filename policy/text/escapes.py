"""Decodes JSON escapes to one character each, so that rules see the decoded text.

    \\u0061nn@x.org          ──read──▶   ann@x.org             a character that needs no escape
    to:\\nann@x.org          ──read──▶   to:␊ann@x.org         one that needs an escape becomes a stand-in
    to:␊<EMAIL_1>           ──write─▶   to:\\n<EMAIL_1>

The stand-ins are private use characters. ``normalisation`` maps them to their character. A text that uses
private use characters itself does not keep them.
"""

import json
import re

_FIRST = 0x10FF00
_MUST = [*range(0x20), ord('"'), ord("\\")]

STAND_INS = {_FIRST + code: chr(code) for code in _MUST}
"""The character of each stand-in, by code."""

_WRITTEN = {_FIRST + code: json.dumps(chr(code))[1:-1] for code in _MUST}
_SHORT = {character: json.loads(f'"\\{character}"') for character in '"\\/bfnrt'}
_LEAD, _TRAIL = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(
    rf"(?P<pair>{_LEAD}{_TRAIL})"
    rf"|(?P<open>{_LEAD}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?\Z|\\(?:u[0-9a-fA-F]{{0,3}})?\Z)"
    r'|\\u(?P<code>[0-9a-fA-F]{4})|\\(?P<short>["\\/bfnrt])'
)


class Escapes:
    """Decodes a text that arrives in pieces. An incomplete escape waits for its end."""

    def __init__(self) -> None:
        self._open = ""

    def feed(self, text: str) -> str:
        """Take a piece and return the decoded text."""
        text, self._open = self._open + text, ""
        if "\\" not in text:
            return text
        last = max(_ESCAPE.finditer(text), key=lambda found: found.start(), default=None)
        if last is not None and last["open"] is not None:
            text, self._open = text[: last.start()], last["open"]
        return _ESCAPE.sub(_read, text)

    def finish(self) -> str:
        """Return the rest. An incomplete escape is not decoded."""
        rest, self._open = self._open, ""
        return rest


def unescaped(text: str) -> str:
    """Return a whole text decoded. A text without ``\\u`` is returned unchanged."""
    if "\\u" not in text:
        return text
    escapes = Escapes()
    return escapes.feed(text) + escapes.finish()


def _read(found: re.Match[str]) -> str:
    if found["open"] is not None:
        return found[0]
    if found["short"] is not None:
        character: str = _SHORT[found["short"]]
    else:
        character = json.loads(f'"{found[0]}"')
        if "\ud800" <= character <= "\udfff":
            return found[0]  # half of a pair
    return chr(_FIRST + ord(character)) if _FIRST + ord(character) in STAND_INS else character


def written(text: str) -> str:
    """Return the text with the stand-ins encoded as JSON escapes."""
    return text.translate(_WRITTEN)
