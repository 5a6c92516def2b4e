"""The partitions by day in which events and ends of jobs lie, and the usage ledger.

A row of ``jobs`` changes until its end and is found by what it is; these rows are only added, and found by their job.
So they lie by the time in the job's id (the ledger by the end), a table for each day of UTC. Days are made ahead. A day
is dropped as a whole when nearly all its jobs are deleted; what the others have moves to the partition ``…_rest``,
which also takes what no day was made for. Database functions do all this: the dispatcher itself may not change tables.
"""

from sqlalchemy import text

from headrace.store.db.database import Database

AHEAD_DAYS = 14
"""For so many days a dispatcher may be away before new rows go to the rest."""
MOST_LEFT = 1000
"""So many jobs of a day may be left when it is dropped; what they have is moved."""

_MAKE = text("SELECT headrace_make_days(:ahead)")
_DROP = text("SELECT headrace_drop_day(:older_than_s, :most_left)")
_CLEAR_REST = text("SELECT headrace_clear_rest(:older_than_s, :limit)")


def make_ahead(db: Database) -> int:
    """Make the missing partitions of the next days; return their number."""
    with db.autocommit() as connection:
        return int(connection.execute(_MAKE, {"ahead": AHEAD_DAYS}).scalar_one())


def drop_one(db: Database, record_ttl_s: float, *, most_left: int = MOST_LEFT) -> str | None:
    """Drop a partition of events or ends whose jobs were made ``record_ttl_s`` seconds ago or earlier; return its name.

    None: there is none. One with more than ``most_left`` jobs stays as it is.
    """
    with db.autocommit() as connection:
        values = {"older_than_s": float(record_ttl_s), "most_left": most_left}
        name: str | None = connection.execute(_DROP, values).scalar_one()
    return name


def clear_rest(db: Database, record_ttl_s: float, limit: int) -> int:
    """Delete at most ``limit`` events and ends of deleted jobs that lie in no day; return their number."""
    with db.autocommit() as connection:
        return int(connection.execute(_CLEAR_REST, {"older_than_s": float(record_ttl_s), "limit": limit}).scalar_one())
