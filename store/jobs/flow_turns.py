"""Reads how far a job has come whose model calls tools of the server: its answers with calls, and the calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.schema.job_states import JobState
from headrace.store.seal import SealContext

MARK: Final = ":"
"""In the names of added steps, and in no name that a caller may give."""

# Read these steps of a flow.
_STEPS = text("""
SELECT id, step, task, state, epoch, output FROM jobs
WHERE tenant_id = :tenant_id AND parent_id = :flow_id AND step = ANY(CAST(:names AS text[]))
""")


@dataclass(frozen=True, slots=True)
class TurnStep:
    """A step, with the number in its name: 0 is the one of the request."""

    id: str
    number: int
    task: str
    state: JobState
    epoch: int
    output: dict[str, Any] | None


def number_of(name: str, base: str) -> int | None:
    """Return the number of a step that ``base`` brought, 0 for itself, None for another step."""
    if name == base:
        return 0
    found, _, number = name.partition(MARK)
    return int(number) if found == base and number.isdigit() else None


def is_added(name: str) -> bool:
    """True for the name of a step that another step brought, and not the caller's request."""
    return name.rpartition(MARK)[2].isdigit() and MARK in name


def read_steps(db: Database, tenant_id: str, flow_id: str, base: str, *, first: int, most: int) -> Sequence[TurnStep]:
    """Return ``base`` and the steps that it brought, in order, from the number ``first`` on. Raises CannotOpen.

    ``most``: how many steps a job may have.
    """
    names = [base if number == 0 else f"{base}{MARK}{number}" for number in range(first, first + most)]
    with db.autocommit(tenant_id=tenant_id) as connection:
        values = {"tenant_id": tenant_id, "flow_id": flow_id, "names": names}
        rows = connection.execute(_STEPS, values).all()
    found = []
    for row in rows:
        output = db.seal.open(row.output, SealContext(tenant_id, "jobs", "output", row.id))
        number = number_of(row.step, base) or 0
        found.append(TurnStep(row.id, number, row.task, JobState(row.state), row.epoch, output))
    return sorted(found, key=lambda step: step.number)
