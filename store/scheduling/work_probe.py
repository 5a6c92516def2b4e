"""The work probe: one cheap statement that finds out whether the dispatcher has any work. Usually it has none.

Each answer is the first entry of an index, so the cost does not depend on the amount of work. The probe only finds that
there is work; the duty that does it reads the details.
"""

from dataclasses import dataclass

from sqlalchemy import text

from headrace.store.db.database import Database

# Find the kinds of work. These are scalar subqueries, because the planner drops the ORDER BY of an EXISTS and then
# reads a table full of dead rows from its beginning.
_PROBE = text("""
SELECT
    (SELECT queue FROM jobs WHERE state = 'queued' ORDER BY queue LIMIT 1) IS NOT NULL AS jobs,
    (SELECT id FROM queue_changes ORDER BY id LIMIT 1) IS NOT NULL
        OR (SELECT id FROM open_changes ORDER BY id LIMIT 1) IS NOT NULL
        OR (SELECT id FROM spend_changes ORDER BY id LIMIT 1) IS NOT NULL AS changes,
    (SELECT next_attempt_at FROM webhook_deliveries WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1) <= now()
        IS TRUE AS deliveries,
    (SELECT cache_source FROM jobs WHERE state = 'queued' AND cache_source IS NOT NULL ORDER BY cache_source LIMIT 1)
        IS NOT NULL AS sharers
""")


@dataclass(frozen=True, slots=True)
class PendingWork:
    """Queued jobs, changes that are not folded into the totals yet, webhook deliveries that are due, and jobs that wait
    for the answer of another job."""

    jobs: bool = True
    changes: bool = True
    deliveries: bool = True
    sharers: bool = True


def probe(db: Database) -> PendingWork:
    """Return the kinds of work that there are now."""
    with db.autocommit() as connection:
        return PendingWork(**connection.execute(_PROBE).mappings().one())
