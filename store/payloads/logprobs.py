"""How likely a model found the tokens of an answer, as that travels and is kept: ids and numbers, never texts.

A row of JSON is ``[token id, logprob, [[id, logprob], ...]]``, the likeliest tokens last, best first. What the ids
spell is known to ``prompts.logprobs``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token, the natural logarithm of its probability, and the same of the likeliest tokens in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> Self:
        """Read what ``as_json`` wrote."""
        token_id, logprob, top = row
        return cls(token_id, logprob, tuple((top_id, top_logprob) for top_id, top_logprob in top))

    def as_json(self) -> list[Any]:
        """Return the row as plain JSON values."""
        return [self.token_id, self.logprob, [list(one) for one in self.top]]


Logprobs = tuple[TokenLogprobs, ...]
"""Those of consecutive tokens; empty where nobody asked."""


def read_logprobs(rows: Iterable[Sequence[Any]]) -> Logprobs:
    """Read the rows of consecutive tokens."""
    return tuple(TokenLogprobs.from_json(row) for row in rows)


def read_groups(groups: Iterable[Iterable[Sequence[Any]]] | None) -> tuple[Logprobs, ...]:
    """Read the rows of each delta's tokens; nothing stays nothing."""
    return tuple(read_logprobs(rows) for rows in groups or ())


def groups_as_json(groups: Iterable[Logprobs]) -> list[list[list[Any]]] | None:
    """Return the rows of each delta's tokens as plain JSON values, None if there are none."""
    return [[one.as_json() for one in group] for group in groups] or None
