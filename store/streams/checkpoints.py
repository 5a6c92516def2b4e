"""Checkpoints: the deltas that were emitted so far and their attempts, so that another attempt can continue there.

A job's text is a list of deltas, counted from 1. An attempt (epoch) either begins at the beginning or continues after
the first ``base`` deltas of the text before it:

    epoch 1   1 2 3 4 5 6 7 ╳ lost           lineage (1, 0)
    epoch 2             └─▶ 6 7 8 ╳ lost     lineage (1, 0) (2, 5)      deltas 6 and 7 of epoch 1 are void
    epoch 3   1 2 3 …                        lineage (3, 0)             nothing before epoch 3 counts

A reader with ``seq`` deltas of ``epoch`` keeps them if every later attempt kept them. If ``epoch`` is not in the
lineage, its deltas are unknown to the newest attempt and none are kept. Pure values: the deltas of a running attempt
are in Redis, those of a released attempt in Postgres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from store.payloads.logprobs import Logprobs, groups_as_json, read_groups

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
    the same tokens; ``logprobs`` is empty if the job does not ask for them.
    """

    deltas: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    lineage: Lineage = ()
    logprobs: tuple[Logprobs, ...] = ()

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

    def continued_by(self, epoch: int) -> "Checkpoint":
        """Return the start of an attempt that continues here, or begins anew if nothing was emitted."""
        lineage = (*self.lineage, (epoch, self.num_deltas)) if self.deltas else ((epoch, 0),)
        return replace(self, lineage=lineage)

    @classmethod
    def from_json(cls, stored: dict[str, Any] | None) -> Self | None:
        """Read the result of ``as_json``; None stays None."""
        if stored is None:
            return None
        return cls(
            deltas=tuple(stored["deltas"]),
            token_ids=tuple(tuple(group) for group in stored["token_ids"]),
            lineage=lineage_from_json(stored["lineage"]),
            logprobs=read_groups(stored.get("logprobs")),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the checkpoint as plain JSON values."""
        plain: dict[str, Any] = {
            "deltas": list(self.deltas),
            "token_ids": [*map(list, self.token_ids)],
            "lineage": [*map(list, self.lineage)],
        }
        return plain | {"logprobs": groups_as_json(self.logprobs)} if self.logprobs else plain


def lineage_from_json(stored: Sequence[Sequence[int]]) -> Lineage:
    """Read a stored lineage."""
    return tuple((int(epoch), int(base)) for epoch, base in stored)
