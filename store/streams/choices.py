"""The choices of a job: several answers to one request, as deltas of one stream.

Each delta of such a job has a mark: the choice that it belongs to, and on the choice's last delta its end. A job with
one answer has no marks.

    deltas   "Hel"  "Goo"  "lo"  "d"   ""     ""
    choice    0      1      0     1    0 end  1 end

In JSON a delta with a mark is ``[choice, text]``, the last one ``[choice, text, [reason, input tokens, output tokens,
stop text]]``; a delta without a mark is its text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How a choice ended by itself: ``finish_reason`` is ``stop`` or ``length``. A choice with an end is not run again.

    ``stop_text``: the stop string that ended the text, if one did.
    """

    finish_reason: str
    input_tokens: int
    output_tokens: int
    stop_text: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceMark:
    """The number of a choice, from 0, and on its last delta its end."""

    choice: int
    end: ChoiceEnd | None = None


Marks = tuple[ChoiceMark, ...]
"""One for each delta; empty for a job with one answer."""


def marked_as_json(text: str, mark: ChoiceMark) -> list[Any]:
    """Return a delta with a mark as plain JSON values."""
    return [mark.choice, text, *([] if mark.end is None else [list(astuple(mark.end))])]


def marked_from_json(stored: Sequence[Any]) -> tuple[str, ChoiceMark]:
    """Read the result of ``marked_as_json``."""
    choice, text, *end = stored
    return text, ChoiceMark(choice, ChoiceEnd(*end[0]) if end else None)


def deltas_as_json(deltas: Sequence[str], marks: Marks) -> list[Any]:
    """Return deltas as plain JSON values, with their marks if they have any."""
    return [*map(marked_as_json, deltas, marks)] if marks else list(deltas)


def deltas_from_json(stored: Iterable[Any]) -> tuple[tuple[str, ...], Marks]:
    """Read the result of ``deltas_as_json``."""
    rows = list(stored)
    if not rows or isinstance(rows[0], str):
        return tuple(rows), ()
    pairs = [*map(marked_from_json, rows)]
    return tuple(text for text, _ in pairs), tuple(mark for _, mark in pairs)
