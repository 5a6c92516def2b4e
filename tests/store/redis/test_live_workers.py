"""Snapshots of workers in Redis."""

import redis

from headrace.store.redis.live_workers import SnapshotPublisher, WorkerSnapshot, read_workers
from tests.processes import wait_for


def test_the_snapshot_of_a_lost_worker_is_gone_after_its_time(redis_client: redis.Redis) -> None:
    room = {"slots": 4, "running": 0, "waiting": 0, "free_blocks": 9, "total_blocks": 9}
    snapshot = WorkerSnapshot(
        id="celery@mill:7:boot", queue="tiny@1", engine=None, lease_s=10, lease_age_s=None, jobs=[], kept_s=2, **room
    )
    SnapshotPublisher(redis_client).publish(snapshot, None)
    assert 0 < redis_client.pttl(f"headrace:live:worker:{snapshot.id}") <= 2000
    wait_for(lambda: not read_workers(redis_client), "it is no longer shown")
    assert redis_client.scard("headrace:live:workers") == 0
