"""How much a JSON body may hold, counted before any of it is parsed and typed.

A megabyte of ``{}`` is 340,000 objects, each many times as dear as its bytes. What stands in texts is not counted.
"""

import re

from store.errors import InvalidRequest

MOST_CONTAINERS = 16_384
"""ListQueries and objects. A conversation of 1,024 messages with three parts each has fewer than a third of them."""

MOST_FIELDS = 16_384
"""Fields of all objects together: tools with schemas of half a megabyte have fewer."""

MOST_VALUES = 262_144
"""Values of lists and objects. As token ids they are more than any model's window."""

# Without its last quote too: each text is read once, wherever the next one begins.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def check_counts(body: bytes) -> None:
    """Raise InvalidRequest for a JSON body with more in it than is accepted, whatever is in its texts."""
    if any(found > most for _, found, most in _counts(body)):
        for what, found, most in _counts(_TEXT.sub(b"", body)):
            if found > most:
                raise InvalidRequest(f"the JSON body has {found} {what}, and {most} are accepted: send less at once")


def _counts(text: bytes) -> list[tuple[str, int, int]]:
    return [
        ("lists and objects", text.count(b"[") + text.count(b"{"), MOST_CONTAINERS),
        ("fields of objects", text.count(b":"), MOST_FIELDS),
        ("values", text.count(b",") + 1, MOST_VALUES),
    ]
