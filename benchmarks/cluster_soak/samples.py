"""A sample of a cluster at one moment: memory, threads and descriptors of processes, connections, rows' space, keys."""

from contextlib import suppress
from typing import Any

import psutil
import psycopg
import redis

from headrace.store.child_process import descendants
from tests.chaos.cluster import Cluster
from tests.chaos.soak import database_of

Sample = dict[str, float]
"""Value by name of the series, such as ``memory MiB/worker-1`` or ``table KiB/jobs``."""

# Space of each table with its TOAST and maps, and of its indexes, in KiB.
_SPACE = """
SELECT relname, pg_table_size(relid) / 1024 AS table_kib, pg_indexes_size(relid) / 1024 AS index_kib
FROM pg_stat_user_tables
"""

_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def sample_of(cluster: Cluster) -> Sample:
    """Return the sizes. A server that is away now has none of its series, and neither has a process that has ended."""
    return {**_processes(cluster), **_postgres(cluster), **_redis(cluster)}


def _processes(cluster: Cluster) -> Sample:
    found: Sample = {}
    for member in cluster.members:
        if member.is_alive and member.child is not None:
            found |= _process(member.name, [member.child.pid, *descendants(member.child.pid)])
    return found | _process("redis", cluster.server_pids("redis"))


def _process(name: str, pids: list[int]) -> Sample:
    """The sums of a process and those below it; nothing if one of them ends meanwhile."""
    with suppress(psutil.Error):
        each = [psutil.Process(pid) for pid in pids]
        return {
            f"memory MiB/{name}": sum(one.memory_info().rss for one in each) / 2**20,
            f"descriptors/{name}": sum(one.num_fds() for one in each),
            f"threads/{name}": sum(one.num_threads() for one in each),
        }
    return {}


def _postgres(cluster: Cluster) -> Sample:
    found: Sample = {}
    with (
        suppress(psycopg.Error),
        psycopg.connect(**database_of(cluster), connect_timeout=5) as connection,
    ):
        rows: list[Any] = connection.execute(_SPACE).fetchall()
        for name, table_kib, index_kib in rows:
            found[f"table KiB/{name}"] = table_kib
            found[f"index KiB/{name}"] = index_kib
        row = connection.execute(_CONNECTIONS).fetchone()
        found["connections/postgres"] = row[0] if row else 0
    return found


def _redis(cluster: Cluster) -> Sample:
    with suppress(redis.RedisError), redis.Redis.from_url(cluster.redis_url, socket_timeout=5) as client:
        about: Any = client.info()
        size: Any = client.dbsize()
        return {
            "keys/redis": size,
            "connections/redis": about["connected_clients"],
            "data MiB/redis": about["used_memory"] / 2**20,
        }
    return {}
