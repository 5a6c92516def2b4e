"""The numbers of workers that the leading dispatcher decides: drivers, the API and the next leader read them.

``store.scheduling.autoscale`` decides.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.errors import NotFound
from headrace.store.json_text import dump_json
from headrace.store.scheduling.autoscale import Decision, ScaleHistory

FRESH_S = 30.0
"""An older decision is none: no dispatcher decides for the queue any more."""

_WRITE = text("""
INSERT INTO queue_scaling (queue, replicas, reason, history)
SELECT queue, replicas, reason, history
FROM json_to_recordset(CAST(:rows AS json)) AS r(queue text, replicas int, reason text, history jsonb) ORDER BY queue
ON CONFLICT (queue) DO UPDATE SET replicas = excluded.replicas, reason = excluded.reason, decided_at = now(),
    history = excluded.history
""")

_FORGET = text("DELETE FROM queue_scaling WHERE decided_at < now() - interval '30 days'")

_FRESH = text("""
SELECT queue, replicas, reason, decided_at FROM queue_scaling
WHERE decided_at > now() - make_interval(secs => :fresh_s) ORDER BY queue
""")

_HISTORIES = text("SELECT queue, history FROM queue_scaling WHERE queue = ANY (:queues)")

# Count the running jobs of each queue.
_RUNNING = text("SELECT queue, count(*) AS jobs FROM queue_lines WHERE state = 'running' GROUP BY queue")

# Read how many jobs a live worker of each queue runs at a time.
_SLOTS = text("""
SELECT queue, min(slots) AS slots FROM worker_processes
WHERE seen_at > now() - make_interval(secs => :gone_after_s) AND slots IS NOT NULL GROUP BY queue
""")


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """How many workers a queue should have, why, and when that was decided last."""

    queue: str
    replicas: int
    reason: str
    decided_at: datetime


def write_decisions(db: Database, decisions: Mapping[str, Decision]) -> None:
    """Store the decision of each queue, as of now."""
    rows = [
        {"queue": queue, "replicas": one.replicas, "reason": one.reason, "history": asdict(one.history)}
        for queue, one in decisions.items()
    ]
    with db.autocommit() as connection:
        connection.execute(_WRITE, {"rows": dump_json(rows)})
        connection.execute(_FORGET)


def read_decisions(db: Database) -> dict[str, StoredDecision]:
    """Return the decisions that are in force, by queue."""
    with db.autocommit() as connection:
        rows = connection.execute(_FRESH, {"fresh_s": FRESH_S}).all()
    return {row.queue: StoredDecision(*row) for row in rows}


def require_decision(db: Database, queue: str) -> StoredDecision:
    """Return the decision for the queue. Raises NotFound without one: a driver leaves the workers as they are."""
    found = read_decisions(db).get(queue)
    if found is None:
        raise NotFound(
            f"no number of workers is decided for {queue}: name its model in HEADRACE_AUTOSCALE of the dispatcher, "
            "and let the dispatcher run",
            code="not_autoscaled",
        )
    return found


def read_histories(db: Database, queues: Collection[str]) -> dict[str, ScaleHistory]:
    """Return what the last decisions knew, by queue, however old."""
    with db.autocommit() as connection:
        rows = connection.execute(_HISTORIES, {"queues": list(queues)}).all()
    # Another release may have written other fields.
    known = {field.name for field in fields(ScaleHistory)}
    return {row.queue: ScaleHistory(**{n: v for n, v in row.history.items() if n in known}) for row in rows}


def read_running(db: Database) -> dict[str, int]:
    """Return the number of running jobs by queue."""
    with db.autocommit() as connection:
        return {row.queue: row.jobs for row in connection.execute(_RUNNING)}


def read_slots(db: Database) -> dict[str, int]:
    """Return how many jobs a live worker of each queue runs at a time, by queue; the least if they differ."""
    with db.autocommit() as connection:
        return {row.queue: row.slots for row in connection.execute(_SLOTS, {"gone_after_s": GONE_AFTER_S})}
