"""Values in the columns of a table whose head names a secret: CSV, Markdown, and columns of spaces.

A check sees only text before a value, so the head is searched upwards from the row of the value.
"""

from itertools import takewhile
from typing import Any

from headrace.policy.recognisers.secret_words import WORD
from headrace.policy.text.patterns import compiled

_SEPARATORS = ("|", "\t", ";", ",")
_SPACES = "  "
_MOST_HEAD = 32
_WORD: Any = compiled(WORD)
_END: Any = compiled(r"s?[ _]?\d?(?:\s?\([^)]*\))?[\s\"'*`]*")
_HEAD: Any = compiled(r"[\s\"'*`]*[\pL_][\pL\d _\-/()]*[\s\"'*`]*")


def column_sort(before: str) -> str | None:
    """Return the sort of the word at the head of the column that a value behind ``before`` is in."""
    above, line_end, row = before.rpartition("\n")
    if not line_end:
        return None
    row = row.rstrip("\"'`")
    bare = row.rstrip(" ")
    separator = bare[-1:]
    if separator not in _SEPARATORS and not row.endswith(_SPACES):
        return None
    # Most tables have no such head.
    if _WORD.search(above) is None:
        return None
    if separator in _SEPARATORS:
        return _sort_at(above, separator, bare.count(separator))
    return _sort_below(above, len(row))


def _sort_at(above: str, separator: str, index: int) -> str | None:
    rows = takewhile(lambda row: row.count(separator) >= index, reversed(above.split("\n")))
    for row in rows:
        if sort := _sort(row.split(separator)[index]):
            return sort
    return None


def _sort_below(above: str, place: int) -> str | None:
    """The head of a column of spaces begins where its values do."""
    for row in takewhile(lambda row: _SPACES in row, reversed(above.split("\n"))):
        if row[place - 1 : place] == " " and (sort := _sort(row[place:].split(_SPACES)[0])):
            return sort
    return None


def _sort(head: str) -> str | None:
    if len(head) > _MOST_HEAD or not _HEAD.fullmatch(head):
        return None
    found = _WORD.search(head)
    return found.lastgroup if found is not None and _END.fullmatch(head[found.end() :]) else None
