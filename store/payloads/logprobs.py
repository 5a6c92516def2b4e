"""Log probabilities of tokens in their stored form: token ids and numbers, no texts.

A row of JSON is ``[token id, logprob, [[id, logprob], ...]]``; the list has the most likely tokens, best first.
``prompts.tokenizer.spell`` turns ids into texts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class LogprobRow:
    """A token, the natural logarithm of its probability, and the same for the most likely tokens at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> Self:
        """Parse the form of ``as_json``."""
        token_id, logprob, top = row
        return cls(token_id, logprob, tuple((top_id, top_logprob) for top_id, top_logprob in top))

    def as_json(self) -> list[Any]:
        """Return the row as plain JSON values."""
        return [self.token_id, self.logprob, [list(one) for one in self.top]]


Logprobs = tuple[LogprobRow, ...]
"""Rows of consecutive tokens; empty if they were not requested."""


def read_logprobs(rows: Iterable[Sequence[Any]]) -> Logprobs:
    """Read the rows of consecutive tokens."""
    return tuple(LogprobRow.from_json(row) for row in rows)


def read_groups(groups: Iterable[Iterable[Sequence[Any]]] | None) -> tuple[Logprobs, ...]:
    """Parse the rows of each delta; None becomes ()."""
    return tuple(read_logprobs(rows) for rows in groups or ())


def groups_as_json(groups: Iterable[Logprobs]) -> list[list[list[Any]]] | None:
    """Return the rows of each delta as plain JSON values; None if there are no deltas."""
    return [[one.as_json() for one in group] for group in groups] or None
