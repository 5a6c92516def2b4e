"""The connections of a worker process to Postgres and Redis. What must not wait for the rest has its own."""

from collections.abc import Callable, Sequence

from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.redis.celery_queue import FastLaneHints
from headrace.store.redis.connection import connect
from headrace.store.redis.live_workers import SnapshotPublisher
from headrace.store.settings import Settings
from headrace.store.streams.fencing import FencedLogs
from headrace.store.streams.stream_log import StreamPublisher
from headrace.workers.runs.checkpoint_recovery import SEAL_TIMEOUT_S
from headrace.workers.runs.parent_work import build_parent_work


class Connections:
    """Opened lazily by their first use; ``close`` closes all of them."""

    def __init__(
        self,
        settings: Settings,
        owner: str,
        queue: str,
        on_junk: Callable[[], None],
        adapters: Callable[[], Sequence[str]],
    ) -> None:
        """``on_junk`` is called for each unreadable message in the hints of the fast lane.

        ``adapters`` returns the queues that the worker serves beside ``queue``.
        """
        seal = open_seal(settings)
        url = settings.database_url
        # Claims, outcomes, releases and the poller run one statement at a time each.
        self.jobs = Database(url, pool_size=5, application_name=f"headrace worker {owner}", seal=seal)
        # Renewals must not wait for the others. The lock timeout is shorter than the time between two renewals, so a
        # locked table costs one renewal at most.
        self.leases = Database(
            url,
            pool_size=1,
            application_name=f"headrace leases {owner}",
            seal=seal,
            lock_timeout_s=settings.lease_s / 4,
        )
        self.health = Database(url, pool_size=2, application_name=f"headrace health {owner}")
        self._redis = connect(settings.redis_url)
        self.publisher = StreamPublisher(self._redis, ttl_s=settings.stream_ttl_s, seal=seal)
        self.fenced_logs = FencedLogs(
            settings.redis_url, ttl_s=settings.stream_ttl_s, timeout_s=SEAL_TIMEOUT_S, seal=seal
        )
        # For people who watch: it waits for nothing.
        self.live = SnapshotPublisher(connect(settings.redis_url, timeout_s=1.0, retries=0))
        self.parents = build_parent_work(settings, self.jobs, self.publisher)
        self.fast_lane_hints = FastLaneHints(settings.redis_url, queue, on_junk, adapters)

    def close(self) -> None:
        """Send the last signals, and close all connections."""
        self.parents.stop()
        for database in (self.jobs, self.leases, self.health):
            database.close()
        self._redis.close()
        self.live.close()
        self.fast_lane_hints.close()
