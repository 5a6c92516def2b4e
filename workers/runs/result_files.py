"""Files that an attempt makes beside its JSON, and the state from which another goes on: the door to the feature that
stores them.

    runner ──add──▶ drafts, which nobody can read ──keep──▶ contents, and rows for the transaction that ends the job
                       └─ the attempt fails, is lost or is cancelled: drafts and contents are collected

A job without files touches nothing of it. A state is of its attempt's epoch: a lost attempt that still runs changes no
state but its own. All states of a job are collected when it has ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim
from headrace.store.jobs.job_rows import EndRows
from headrace.store.settings import Settings


class ResultDrafts(Protocol):
    """The files of one attempt until its end. One thread at a time calls it."""

    def add(self, name: str, content: bytes, media_type: str, facts: dict[str, Any]) -> None:
        """Write a file. ``facts``: what else is shown of it.

        Raises InvalidRequest for a bad name or type and for too many files, TooLarge, QuotaExceeded, Unavailable.
        """
        ...

    def keep(self) -> tuple[Sequence[dict[str, Any]], EndRows]:
        """Store the files; return what is shown of each, and the rows that make them files of the job.

        The rows must be written within ten minutes. Raises Unavailable.
        """
        ...

    def drop(self) -> None:
        """Remove all drafts that were not kept."""
        ...

    def read(self, file_id: str) -> bytes:
        """Return the content of a file of the job's tenant. Raises NotFound, TooLarge, Unavailable."""
        ...

    def save_state(self, state: bytes) -> None:
        """Store the state of the attempt in place of its last one. Raises TooLarge, Unavailable."""
        ...

    def saved_state(self) -> bytes | None:
        """Return the newest state of the attempts before, None if there is none. Raises Unavailable."""
        ...


OpenDrafts: TypeAlias = Callable[[Database, Claim], ResultDrafts]


@dataclass(frozen=True, slots=True)
class ResultsPart:
    """The ``PART`` of a feature's file ``results``: where the files of jobs are stored."""

    open: Callable[[Settings, Database], OpenDrafts]
