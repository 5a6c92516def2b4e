"""What a run cost: CPU of each layer's processes, and what Postgres counted. Knows processes, not jobs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

import psutil
import psycopg


def cpu_s(layers: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the CPU seconds used so far by each layer's process trees, children that ended included."""
    return {layer: sum(_tree_cpu_s(pid) for pid in pids) for layer, pids in layers.items()}


def _tree_cpu_s(root: int) -> float:
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                # The children_* times hold those that ended and were waited for.
                total += sum(each.cpu_times()[:4])
    return total


class PostgresCounters:
    """Counts what the server did between two looks.

    Exact: ``write_commits``, the transactions that wrote (each took a transaction id), and ``statements``, those that
    clients sent, without BEGIN, COMMIT and ROLLBACK. ``transactions`` (readers too) and ``wal_fsyncs`` are what
    backends have reported, which they do once a second, so they may be off by what a second holds.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)

    def __enter__(self) -> Self:
        self._connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def look(self) -> dict[str, float]:
        """Return the counters now; differences of two looks are what matters."""
        return {name: float(self._one(query)) for name, query in _QUERIES.items()}

    def heaviest(self, most: int = 8) -> list[tuple[str, int, float]]:
        """Return the statements that took most time: text, calls, total ms."""
        rows = self._connection.execute(_HEAVIEST, (most,)).fetchall()
        return [(" ".join(query.split())[:100], calls, round(ms, 1)) for query, calls, ms in rows]

    def forget(self) -> None:
        """Start the statements' counts anew."""
        self._connection.execute("SELECT pg_stat_statements_reset()")

    def _one(self, query: str) -> float:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return float(row[0] or 0)


_QUERIES = {
    "write_commits": "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
    "statements": (
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"
        " WHERE query !~* '^(begin|commit|rollback|start)' AND query !~ 'pg_stat|pg_current_snapshot'"
    ),
    "transactions": "SELECT sum(xact_commit) FROM pg_stat_database",
    "wal_fsyncs": "SELECT coalesce(sum(fsyncs), 0) FROM pg_stat_io WHERE object = 'wal'",
}
_HEAVIEST = """
SELECT query, calls, total_exec_time FROM pg_stat_statements
WHERE query !~ 'pg_stat|pg_current_snapshot' ORDER BY total_exec_time DESC LIMIT %s
"""
