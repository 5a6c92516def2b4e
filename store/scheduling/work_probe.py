"""The work probe: one cheap statement that finds out whether the dispatcher has any work. Usually it has none.

Each answer is the first entry of an index, so the cost does not depend on the amount of work. The probe only finds that
there is work; the duty that does it reads the details.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import TextClause, text

from headrace.store.db.database import Database

# Find the kinds of work. These are scalar subqueries, because the planner drops the ORDER BY of an EXISTS and then
# reads a table full of dead rows from its beginning. What waits in the queue of nobody is not announced; it is left out
# by two ranges, because a <> would read all of it.
_PROBE = """
SELECT
    (SELECT queue FROM jobs WHERE state = 'queued' AND queue < 'cache' ORDER BY queue LIMIT 1) IS NOT NULL
        OR (SELECT queue FROM jobs WHERE state = 'queued' AND queue > 'cache' ORDER BY queue LIMIT 1) IS NOT NULL
        AS jobs,
    (SELECT id FROM queue_changes ORDER BY id LIMIT 1) IS NOT NULL
        OR (SELECT id FROM open_changes ORDER BY id LIMIT 1) IS NOT NULL
        OR (SELECT id FROM spend_changes ORDER BY id LIMIT 1) IS NOT NULL AS changes,
    COALESCE((
        SELECT start_after FROM jobs
        WHERE state = 'queued' AND queue = 'cache' AND start_after IS NOT NULL AND task <> 'flow'
        ORDER BY start_after LIMIT 1) <= now(), false) AS starts
"""


@dataclass(frozen=True, slots=True)
class PendingWork:
    """Jobs in the queues of versions, changes not yet folded into the totals, and jobs whose ``start_after`` has come.

    ``of_features``: the kinds of work of features that are due; None: not known, so any may be.
    """

    jobs: bool = True
    changes: bool = True
    starts: bool = True
    of_features: frozenset[str] | None = None

    def has(self, kind: str) -> bool:
        """Return True if a feature's kind of work may be due."""
        return self.of_features is None or kind in self.of_features


class WorkProbe:
    """Finds the kinds of work that there are. ``more``: those of features, each with its scalar subquery."""

    def __init__(self, db: Database, more: Mapping[str, str]) -> None:
        self._db = db
        self._more = tuple(more)
        self._query: TextClause = text(_PROBE + "".join(f", ({query}) AS {kind}" for kind, query in more.items()))

    def look(self) -> PendingWork:
        """Return the kinds of work that there are now. Raises Unavailable."""
        with self._db.autocommit() as connection:
            row = connection.execute(self._query).mappings().one()
        due = frozenset(kind for kind in self._more if row[kind])
        return PendingWork(row["jobs"], row["changes"], row["starts"], due)
