"""Values as JSON texts that Postgres can store."""

import re

import orjson

from headrace.store.errors import InvalidRequest

# U+0000 as orjson writes it, but not an escaped backslash followed by u0000. jsonb refuses U+0000, so we do too.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def dump_json(value: object) -> str:
    """Encode a parameter for a ``json`` or ``jsonb`` cast; raise InvalidRequest for a string that cannot be stored."""
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError:
        # From None: the encoder's message may quote the text.
        raise InvalidRequest("a text is not valid Unicode, or a number is out of range") from None
    if has_nul(data):
        # Postgres would refuse it too, and quote it in its log.
        raise InvalidRequest("a value cannot be stored: it contains U+0000")
    return data.decode()


def has_nul(data: bytes) -> bool:
    """True if a string in a JSON text contains U+0000, written as ``\\u0000``."""
    return b"\\u0000" in data and _NUL.search(data) is not None
