"""Limits on the number of values in a JSON body, checked before it is parsed.

A megabyte of ``{}`` is 340,000 objects, and an object takes many times the memory of its bytes. Texts are not counted.
"""

import re

from store.errors import InvalidRequest

MOST_CONTAINERS = 16_384
"""ListQueries and objects. A conversation of 1,024 messages with three parts each has fewer than a third of them."""

MOST_FIELDS = 16_384
"""Fields of all objects together: tools with schemas of half a megabyte have fewer."""

MOST_VALUES = 262_144
"""Values of lists and objects. As token ids they are more than any model's window."""

# The last quote is optional, so that each byte is read once even in a text without an end.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def check_counts(body: bytes) -> None:
    """Raise InvalidRequest for a JSON body with more values than the limits, not counting inside texts."""
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
