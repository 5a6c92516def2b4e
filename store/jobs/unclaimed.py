"""Why a statement of ``store.jobs.claims`` left jobs out: their rows were locked, or they are not available."""

from collections.abc import Mapping, Sequence

from store.db.database import Database
from store.db.presence import GONE_AFTER_S
from store.errors import Unavailable
from store.jobs.claim_queries import CLAIMABLE, OWNED, STILL_RUNNING


class RowLocked(Unavailable):
    """Another transaction has locked the job's row, so the statement left it out. The caller can try again."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"another transaction has locked the row of {job_id}", code="database_unavailable")


def still_open(db: Database, queue: str, job_ids: Sequence[str], *, capacity: int | None = None) -> set[str]:
    """Return the jobs that ``claim`` may take. For jobs that it has just left out: those with a locked row."""
    with db.autocommit() as connection:
        values = {"queue": queue, "ids": list(job_ids), "suspects": False}
        values |= {"capacity": capacity, "gone_after_s": GONE_AFTER_S}
        return set(connection.execute(CLAIMABLE, values).scalars())


def still_running(db: Database, held: Mapping[str, int]) -> set[str]:
    """Return the jobs that run under these epochs. For jobs that ``finish`` or ``release`` has just left out: those
    with a locked row."""
    with db.autocommit() as connection:
        return set(connection.execute(STILL_RUNNING, {"ids": list(held), "epochs": list(held.values())}).scalars())


def owned(db: Database, owner: str) -> dict[str, int]:
    """Return every running job of the owner, with its epoch."""
    with db.autocommit() as connection:
        return {row.id: row.epoch for row in connection.execute(OWNED, {"owner": owner})}
