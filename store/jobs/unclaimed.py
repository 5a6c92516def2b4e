"""What Postgres says of jobs that a statement of ``store.jobs.claims`` has left out, or whose claim had no answer."""

from collections.abc import Mapping, Sequence

from sqlalchemy import text

from store.db.database import Database
from store.db.presence import GONE_AFTER_S
from store.errors import Unavailable
from store.jobs.claims import OPEN


class RowLocked(Unavailable):
    """Another transaction has locked the job's row, so the statement left it out. It can be tried again."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"another transaction has locked the row of {job_id}", code="database_unavailable")


_STILL_OPEN = text(OPEN)


def still_open(db: Database, queue: str, job_ids: Sequence[str], *, capacity: int | None = None) -> set[str]:
    """Return those of the jobs that ``claim`` may take. Of jobs that it has just left out: those that were locked."""
    with db.autocommit() as connection:
        values = {"queue": queue, "ids": list(job_ids), "suspects": False}
        values |= {"capacity": capacity, "gone_after_s": GONE_AFTER_S}
        return set(connection.execute(_STILL_OPEN, values).scalars())


_STILL_RUNNING = text("""
SELECT jobs.id
FROM jobs JOIN unnest(CAST(:ids AS text[]), CAST(:epochs AS bigint[])) AS named(id, epoch) USING (id, epoch)
WHERE state = 'running'
""")


def still_running(db: Database, held: Mapping[str, int]) -> set[str]:
    """Return those of the jobs that run under these epochs. Of jobs that ``finish`` or ``release`` has just left out:
    those that were locked."""
    with db.autocommit() as connection:
        return set(connection.execute(_STILL_RUNNING, {"ids": list(held), "epochs": list(held.values())}).scalars())


_OWNED = text("SELECT id, epoch FROM jobs WHERE state = 'running' AND owner = :owner")


def owned(db: Database, owner: str) -> dict[str, int]:
    """Return every job that the owner runs as far as Postgres knows, with its epoch."""
    with db.autocommit() as connection:
        return {row.id: row.epoch for row in connection.execute(_OWNED, {"owner": owner})}
