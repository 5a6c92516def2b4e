"""The schedules of a tenant: create, read, pause, resume, delete, and the step from one tick to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import RowMapping, text

from headrace.features.schedules.ticks import Missed
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.ids import new_id
from headrace.store.json_text import dump_json
from headrace.store.seal import Seal, SealContext

MAX_SCHEDULES: Final = 1_000
"""Maximum number of a tenant."""

_MOST_DUE = 100_000


@dataclass(frozen=True, slots=True)
class Schedule:
    """A row of ``schedules``. ``definition``: ``{"job": …}`` or ``{"batch": …}``. ``now``: when it was read."""

    id: str
    tenant_id: str
    name: str
    cron: str
    zone: str
    definition: dict[str, Any]
    may_overlap: bool
    missed: Missed
    api_key_id: str
    next_at: datetime | None
    last_at: datetime | None
    last_run_id: str | None
    num_runs: int
    num_skipped: int
    last_error: dict[str, Any] | None
    created_at: datetime
    now: datetime


_COLUMNS = ", ".join(name for name in Schedule.__slots__ if name != "now") + ", now() AS now"

_CREATE = text(f"""
INSERT INTO schedules (id, tenant_id, name, cron, zone, definition, may_overlap, missed, api_key_id, next_at)
SELECT :id, CAST(:tenant_id AS varchar), :name, :cron, :zone, CAST(:definition AS jsonb), :may_overlap, :missed,
    :api_key_id, :next_at
WHERE (SELECT count(*) FROM schedules WHERE tenant_id = CAST(:tenant_id AS varchar)) < :most
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING {_COLUMNS}
""")
_HAS_NAME = text("SELECT EXISTS (SELECT FROM schedules WHERE tenant_id = :tenant_id AND name = :name)")
_LIST = text(f"SELECT {_COLUMNS} FROM schedules WHERE tenant_id = :tenant_id ORDER BY name")
# By id or by name: ids have an underscore, which no name has.
_GET = text(f"SELECT {_COLUMNS} FROM schedules WHERE tenant_id = :tenant_id AND (id = :id OR name = :id)")
_DELETE = text("DELETE FROM schedules WHERE tenant_id = :tenant_id AND id = :id RETURNING name")
_SET_NEXT = text(f"""
UPDATE schedules SET next_at = :next_at, api_key_id = :api_key_id WHERE tenant_id = :tenant_id AND id = :id
RETURNING {_COLUMNS}
""")
_REPLACE = text(f"""
UPDATE schedules SET
    cron = :cron, zone = :zone, may_overlap = :may_overlap, missed = :missed, api_key_id = :api_key_id,
    definition = CAST(:definition AS jsonb), last_error = NULL,
    next_at = CASE WHEN next_at IS NOT NULL THEN :next_at END
WHERE tenant_id = :tenant_id AND id = :id RETURNING {_COLUMNS}
""")

# Find the schedules of all tenants that are due.
_DUE = text("SELECT id, tenant_id FROM due_schedules WHERE next_at <= now() ORDER BY next_at LIMIT :most")

# Go on to the next tick. Another keeper, a pause or a deletion may have been faster.
_MOVE = text("""
UPDATE schedules SET
    next_at = :next_at, num_skipped = num_skipped + :num_skipped, last_error = CAST(:error AS jsonb),
    num_runs = num_runs + CASE WHEN CAST(:run_id AS text) IS NULL THEN 0 ELSE 1 END,
    last_run_id = COALESCE(:run_id, last_run_id),
    last_at = CASE WHEN CAST(:run_id AS text) IS NULL THEN last_at ELSE :tick END
WHERE tenant_id = :tenant_id AND id = :id AND next_at = :from_at
""")


def create(db: Database, tenant_id: str, values: dict[str, Any], definition: dict[str, Any]) -> Schedule:
    """Add a schedule; ``values`` are columns. Raises Conflict if its name is taken or the maximum is reached."""
    schedule_id = new_id("sched")
    sealed = dump_json(db.seal.seal(definition, _context(tenant_id, schedule_id)))
    row_values = {**values, "id": schedule_id, "tenant_id": tenant_id, "definition": sealed, "most": MAX_SCHEDULES}
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_CREATE, row_values).mappings().one_or_none()
        if row is None:
            if connection.execute(_HAS_NAME, row_values).scalar_one():
                raise Conflict(f"there is a schedule named {values['name']}: delete it first, or take another name")
            raise Conflict(f"there are {MAX_SCHEDULES} schedules, which is the most: delete one first")
        record(connection, tenant_id, values["api_key_id"], "schedule.created", schedule_id, {"name": values["name"]})
    return _schedule(row, db.seal)


def replace(db: Database, schedule: Schedule, values: dict[str, Any], definition: dict[str, Any]) -> Schedule:
    """Give a schedule another body; ``values`` are columns. It keeps its id, runs and pause. Raises NotFound."""
    sealed = dump_json(db.seal.seal(definition, _context(schedule.tenant_id, schedule.id)))
    row_values = {**values, "id": schedule.id, "tenant_id": schedule.tenant_id, "definition": sealed}
    with db.begin(tenant_id=schedule.tenant_id) as connection:
        row = _found(connection.execute(_REPLACE, row_values).mappings().one_or_none(), schedule.id)
        actor, detail = values["api_key_id"], {"name": schedule.name}
        record(connection, schedule.tenant_id, actor, "schedule.replaced", schedule.id, detail)
    return _schedule(row, db.seal)


def list_schedules(db: Database, tenant_id: str) -> list[Schedule]:
    """Return the tenant's schedules, by name."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_LIST, {"tenant_id": tenant_id}).mappings().all()
    return [_schedule(row, db.seal) for row in rows]


def get(db: Database, tenant_id: str, name_or_id: str) -> Schedule:
    """Return a schedule. Raises NotFound."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_GET, {"tenant_id": tenant_id, "id": name_or_id}).mappings().one_or_none()
    return _schedule(_found(row, name_or_id), db.seal)


def set_next(db: Database, schedule: Schedule, next_at: datetime | None, *, actor: str) -> Schedule:
    """Pause a schedule (None), or let it go on at this tick with the rights of the key ``actor``. Raises NotFound."""
    values = {"tenant_id": schedule.tenant_id, "id": schedule.id, "next_at": next_at, "api_key_id": actor}
    action = "schedule.paused" if next_at is None else "schedule.resumed"
    with db.begin(tenant_id=schedule.tenant_id) as connection:
        row = _found(connection.execute(_SET_NEXT, values).mappings().one_or_none(), schedule.id)
        record(connection, schedule.tenant_id, actor, action, schedule.id, {"name": schedule.name})
    return _schedule(row, db.seal)


def delete(db: Database, schedule: Schedule, *, actor: str) -> None:
    """Delete a schedule; its runs stay. Raises NotFound."""
    with db.begin(tenant_id=schedule.tenant_id) as connection:
        row = connection.execute(_DELETE, {"tenant_id": schedule.tenant_id, "id": schedule.id}).mappings()
        name = _found(row.one_or_none(), schedule.id)["name"]
        record(connection, schedule.tenant_id, actor, "schedule.deleted", schedule.id, {"name": name})


def due(db: Database) -> Sequence[tuple[str, str]]:
    """Return tenant and id of schedules whose next tick has come, the oldest first. Some of them wait for a run."""
    with db.autocommit() as connection:
        return [(row.tenant_id, row.id) for row in connection.execute(_DUE, {"most": _MOST_DUE})]


def move(
    db: Database,
    schedule: Schedule,
    next_at: datetime | None,
    *,
    tick: datetime,
    num_skipped: int = 0,
    run_id: str | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """Go on from the tick that the schedule was read at: its run is stored, or it has none, for ``error`` if any."""
    values = {
        "id": schedule.id,
        "tenant_id": schedule.tenant_id,
        "from_at": schedule.next_at,
        "next_at": next_at,
        "tick": tick,
        "num_skipped": num_skipped,
        "run_id": run_id,
        "error": None if error is None else dump_json(error),
    }
    with db.autocommit(tenant_id=schedule.tenant_id) as connection:
        connection.execute(_MOVE, values)


def _context(tenant_id: str, schedule_id: str) -> SealContext:
    return SealContext(tenant_id, "schedules", "definition", schedule_id)


def _schedule(row: RowMapping, seal: Seal) -> Schedule:
    opened = seal.open(row["definition"], _context(row["tenant_id"], row["id"]))
    return Schedule(**{**row, "definition": opened, "missed": Missed(row["missed"])})


def _found(row: RowMapping | None, name: str) -> RowMapping:
    if row is None:
        raise NotFound(f"no schedule {name[:100]}")
    return row
