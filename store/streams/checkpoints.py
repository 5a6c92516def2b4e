"""Checkpoints: the deltas that were emitted so far and their attempts, so that another attempt can continue there.

A job's text is a list of deltas, counted from 1. An attempt (epoch) either begins at the beginning or continues after
the first ``base`` deltas of the text before it:

    epoch 1   1 2 3 4 5 6 7 ╳ lost           lineage (1, 0)
    epoch 2             └─▶ 6 7 8 ╳ lost     lineage (1, 0) (2, 5)      deltas 6 and 7 of epoch 1 are void
    epoch 3   1 2 3 …                        lineage (3, 0)             nothing before epoch 3 counts

A reader with ``seq`` deltas of ``epoch`` keeps them if every later attempt kept them. If ``epoch`` is not in the
lineage, its deltas are unknown to the newest attempt and none are kept. Pure values: the deltas of a running attempt
are in Redis, those of a released attempt in Postgres.

Log probabilities of tokens are stored as token ids and numbers, without texts. A row of JSON is ``[token id, logprob,
[[id, logprob], ...]]``; the list has the most likely tokens, best first. ``prompts.tokenizer.spell`` turns ids into
texts.

The choices of a job are several answers to one request, as deltas of one stream. Each delta of such a job
has a mark: the choice that it belongs to, and on the choice's last delta its end. A job with
one answer has no marks.

    deltas   "Hel"  "Goo"  "lo"  "d"   ""     ""
    choice    0      1      0     1    0 end  1 end

In JSON a delta with a mark is ``[choice, text]``, the last one ``[choice, text, [reason, input tokens, output tokens,
stop text]]``; a delta without a mark is its text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Self


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


Lineage = tuple[tuple[int, int], ...]
"""(epoch, base) of each attempt since the last one that began at the beginning, oldest first."""


def num_kept(lineage: Lineage, epoch: int, seq: int) -> int:
    """Return how many of a reader's first ``seq`` deltas of ``epoch`` the newest attempt has kept."""
    if epoch not in (known for known, _ in lineage):
        return 0
    return min([seq, *(base for later, base in lineage if later > epoch)])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that attempts have emitted of a job: a text and its token ids for each delta.

    ``deltas[i]`` came from ``token_ids[i]``. Tokens without a certain text yet are not included. ``logprobs[i]`` are of
    the same tokens; ``logprobs`` is empty if the job does not ask for them. ``marks``: which choice each delta
    is of; empty if the job has one. ``first_token_s``: from acceptance to the first of the tokens; None: not known.
    """

    deltas: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    lineage: Lineage = ()
    logprobs: tuple[Logprobs, ...] = ()
    marks: Marks = ()
    first_token_s: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.deltas) != len(self.token_ids):
            raise ValueError(f"{len(self.deltas)} deltas came from {len(self.token_ids)} groups of tokens")

    @property
    def num_deltas(self) -> int:
        """The number of deltas: the ``base`` of an attempt that continues here."""
        return len(self.deltas)

    @property
    def epoch(self) -> int:
        """The last attempt that is known to have added deltas; 0 if there is none."""
        return self.lineage[-1][0] if self.lineage else 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """All emitted tokens in order."""
        return tuple(token for group in self.token_ids for token in group)

    @property
    def ends(self) -> dict[int, ChoiceEnd]:
        """The choices that have ended."""
        return {mark.choice: mark.end for mark in self.marks if mark.end is not None}

    def of_choice(self, choice: int) -> "Checkpoint":
        """Return the deltas of one choice that have text. Without marks all deltas are of choice 0."""
        if not self.marks:
            return self if choice == 0 else Checkpoint()
        rows = [row for row, mark in enumerate(self.marks) if mark.choice == choice and self.deltas[row]]
        return Checkpoint(
            tuple(self.deltas[row] for row in rows),
            tuple(self.token_ids[row] for row in rows),
            logprobs=tuple(self.logprobs[row] for row in rows) if self.logprobs else (),
        )

    def continued_by(self, epoch: int) -> "Checkpoint":
        """Return the start of an attempt that continues here, or begins anew if nothing was emitted."""
        if not self.deltas:
            return replace(self, lineage=((epoch, 0),), first_token_s=None)
        return replace(self, lineage=(*self.lineage, (epoch, self.num_deltas)))

    @classmethod
    def from_json(cls, stored: dict[str, Any] | None) -> Self | None:
        """Read the result of ``as_json``; None stays None."""
        if stored is None:
            return None
        deltas, marks = deltas_from_json(stored["deltas"])
        return cls(
            deltas=deltas,
            token_ids=tuple(tuple(group) for group in stored["token_ids"]),
            lineage=lineage_from_json(stored["lineage"]),
            logprobs=read_groups(stored.get("logprobs")),
            marks=marks,
            first_token_s=stored.get("first_token_s"),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the checkpoint as plain JSON values."""
        plain: dict[str, Any] = {
            "deltas": deltas_as_json(self.deltas, self.marks),
            "token_ids": [*map(list, self.token_ids)],
            "lineage": [*map(list, self.lineage)],
        }
        if self.logprobs:
            plain["logprobs"] = groups_as_json(self.logprobs)
        if self.first_token_s is not None:
            plain["first_token_s"] = self.first_token_s
        return plain


def lineage_from_json(stored: Sequence[Sequence[int]]) -> Lineage:
    """Read a stored lineage."""
    return tuple((int(epoch), int(base)) for epoch, base in stored)
