"""Whether there is anything for a dispatcher to do, in one cheap statement: nearly always there is not.

Each answer is the first entry of an index, so it costs the same however much there is. Knows no more than that there is
something; what it is, whoever does it finds out.
"""

from dataclasses import dataclass

from sqlalchemy import text

from store.db.database import Database

# Scalar subqueries: of an EXISTS the planner drops the order, and reads a table of dead rows from its beginning.
_LOOK = text("""
SELECT
    (SELECT queue FROM jobs WHERE state = 'queued' ORDER BY queue LIMIT 1) IS NOT NULL AS jobs,
    (SELECT id FROM queue_changes ORDER BY id LIMIT 1) IS NOT NULL
        OR (SELECT id FROM open_changes ORDER BY id LIMIT 1) IS NOT NULL
        OR (SELECT id FROM spend_changes ORDER BY id LIMIT 1) IS NOT NULL AS changes,
    (SELECT next_attempt_at FROM webhook_deliveries WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1) <= now()
        IS TRUE AS deliveries
""")


@dataclass(frozen=True, slots=True)
class Due:
    """What there is: jobs that are queued, changes that are not counted yet, deliveries whose time has come."""

    jobs: bool = True
    changes: bool = True
    deliveries: bool = True


def look(db: Database) -> Due:
    """Return what there is to do now."""
    with db.autocommit() as connection:
        return Due(**connection.execute(_LOOK).mappings().one())
