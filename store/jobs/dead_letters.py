"""Dead letters: jobs that failed because their workers kept dying or their attempts ran out, kept for a replay.

``store.jobs.terminal`` writes a row when such a job ends. A replay is a new job, which the caller makes; its id is
recorded here. Every statement has a condition on the tenant.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import RowMapping, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.seal import SealContext

_SELECT = """
SELECT letter.job_id, letter.queue, letter.code, jobs.error,
    jobs.attempt, jobs.crashes, letter.at, letter.replayed_as, letter.replayed_at
FROM dead_letters AS letter JOIN jobs ON jobs.id = letter.job_id
WHERE letter.tenant_id = :tenant_id"""

_FILTERS = """
    AND (CAST(:queue AS text) IS NULL OR letter.queue = :queue)
    AND (CAST(:code AS text) IS NULL OR letter.code = :code)
    AND (CAST(:replayed AS bool) IS NULL OR (letter.replayed_as IS NOT NULL) = :replayed)
    AND (CAST(:models AS text[]) IS NULL OR jobs.model = ANY(CAST(:models AS text[])))"""

# List dead letters, newest first.
_NEWEST = text(f"""{_SELECT}{_FILTERS}
    AND (CAST(:after AS text) IS NULL OR letter.job_id < :after)
ORDER BY letter.job_id DESC LIMIT :limit""")

# List dead letters, oldest first.
_OLDEST = text(f"""{_SELECT}{_FILTERS}
    AND (CAST(:after AS text) IS NULL OR letter.job_id > :after)
ORDER BY letter.job_id LIMIT :limit""")

# Read one dead letter.
_GET = text(f"{_SELECT} AND letter.job_id = :job_id")

# Record a replay, unless one is recorded.
_REPLAYED = text("""
UPDATE dead_letters SET replayed_as = :replayed_as, replayed_at = now()
WHERE tenant_id = :tenant_id AND job_id = :job_id AND replayed_as IS NULL
""")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that failed for good. ``replayed_as``: the new job of its replay, if it was replayed."""

    job_id: str
    queue: str
    code: str
    message: str
    attempt: int
    crashes: int
    at: datetime
    replayed_as: str | None
    replayed_at: datetime | None


def list_dead_letters(
    db: Database,
    tenant_id: str,
    *,
    queue: str | None = None,
    code: str | None = None,
    replayed: bool | None = None,
    models: Collection[str] | None = None,
    limit: int = 20,
    after: str | None = None,
    descending: bool = True,
) -> list[DeadLetter]:
    """Return at most ``limit`` dead letters by the age of their jobs, newest first by default.

    ``models`` None: jobs of every model.
    """
    values: dict[str, object] = {"queue": queue, "code": code, "replayed": replayed, "limit": limit, "after": after}
    values["models"] = None if models is None else list(models)
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_NEWEST if descending else _OLDEST, {"tenant_id": tenant_id, **values}).mappings()
        return [_letter(db, tenant_id, row) for row in rows]


def get_dead_letter(db: Database, tenant_id: str, job_id: str) -> DeadLetter:
    """Return the dead letter; raise NotFound if the tenant has none for this job."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, {"tenant_id": tenant_id, "job_id": job_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no dead letter {job_id}")
    return _letter(db, tenant_id, row)


def _letter(db: Database, tenant_id: str, row: RowMapping) -> DeadLetter:
    error = db.seal.open(row["error"], SealContext(tenant_id, "jobs", "error", row["job_id"])) or {}
    shown = {name: value for name, value in row.items() if name != "error"}
    return DeadLetter(**shown, message=error.get("message", ""))


def note_replay(db: Database, tenant_id: str, job_id: str, replayed_as: str, *, actor: str) -> None:
    """Record the job that a dead letter was replayed as; the first one recorded stays."""
    values = {"tenant_id": tenant_id, "job_id": job_id, "replayed_as": replayed_as}
    with db.begin(tenant_id=tenant_id) as connection:
        if connection.execute(_REPLAYED, values).rowcount:
            record(connection, tenant_id, actor, "dead_letter.replayed", job_id, {"replayed_as": replayed_as})
