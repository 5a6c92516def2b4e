"""What a feature does where a job with a parent begins or ends: such a job is a step of its parent.

A job without a parent costs nothing of this: no statement, no module of the feature, and no wait for its rows.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from sqlalchemy import Connection

from headrace.assembly import parts
from headrace.store.db.database import Database
from headrace.store.jobs.job_rows import Finish
from headrace.store.payloads.tool_approval import Approval
from headrace.store.seal import Seal


@dataclass(frozen=True, slots=True)
class BegunStep:
    """An attempt of a step that has begun. ``name``: its name among the steps of its parent."""

    parent_id: str
    step_id: str
    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AnnouncedStep:
    """A step that is ready and stored as announced. Its hint is to be published after the commit."""

    id: str
    queue: str
    task: str
    model: str
    model_version: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a transaction has decided. After its commit the hints of ``announced`` are to be published, and the readers
    of ``answers``, the steps with the answers of the parents, to be woken. ``ended``: the parents that have ended.
    """

    ended: tuple[str, ...] = ()
    announced: tuple[AnnouncedStep, ...] = ()
    answers: tuple[str, ...] = ()


class Settle(Protocol):
    """Writes what follows for these locked parents, in the transaction that has ended steps of them.

    ``ended``: those steps. ``finishes``: how, if a worker has ended them.
    """

    def __call__(
        self,
        connection: Connection,
        parent_ids: Collection[str],
        seal: Seal,
        *,
        ended: Collection[str] = (),
        finishes: Sequence[Finish] = (),
    ) -> Settled: ...


@dataclass(frozen=True, slots=True)
class ParentPart:
    """The ``PART`` of a feature's file ``parents``. A step ends in this order: ``lock_free``, the change, ``settle``.

    ``note_begun``: note in the parents that steps have begun; return the steps whose readers are to be woken.
    ``lock_free``: lock those of these parents that no other transaction has locked, and return them; waits for none.
    ``checked``: return the ends as their locked parents allow them, with what they add. ``note_usage``: write the usage
    of their steps into locked parents that the transaction is about to end. ``waiting_for``: by tenant and id, the
    approvals that steps of a parent wait for; raises CannotOpen.
    """

    note_begun: Callable[[Database, Sequence[BegunStep]], Sequence[str]]
    lock_free: Callable[[Connection, Collection[str]], frozenset[str]]
    checked: Callable[[Connection, Sequence[Finish]], Sequence[Finish]]
    settle: Settle
    note_usage: Callable[[Connection, Collection[str]], None]
    waiting_for: Callable[[Database, str, str], Sequence[Approval]]


@cache
def parent_part() -> ParentPart:
    """Return the part. Called only for jobs that are steps or have some."""
    (part,) = parts("parents", ParentPart)
    return part
