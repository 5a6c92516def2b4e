"""How many API processes there are, by Postgres: each says now and then that it lives.

What they share through Redis they must divide among them while Redis is away, and then Redis cannot say how many.
"""

from sqlalchemy import text

from store.db import Database

GONE_AFTER_S = 10.0

_BEAT = text("""
INSERT INTO api_processes (id) VALUES (:id) ON CONFLICT (id) DO UPDATE SET seen_at = now()
""")

_FORGET = text("DELETE FROM api_processes WHERE seen_at < now() - make_interval(secs => 6 * :gone_after_s)")

_COUNT = text("SELECT count(*) FROM api_processes WHERE seen_at > now() - make_interval(secs => :gone_after_s)")


def beat(db: Database, process_id: str) -> int:
    """Say that this process lives; return how many do, with it."""
    with db.autocommit() as connection:
        connection.execute(_BEAT, {"id": process_id})
        connection.execute(_FORGET, {"gone_after_s": GONE_AFTER_S})
        return int(connection.execute(_COUNT, {"gone_after_s": GONE_AFTER_S}).scalar_one())


def leave(db: Database, process_id: str) -> None:
    """Say that this process ends."""
    with db.autocommit() as connection:
        connection.execute(text("DELETE FROM api_processes WHERE id = :id"), {"id": process_id})
