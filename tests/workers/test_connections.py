"""The connections of a worker process: their limits, their keys, and that none of them stays open."""

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import redis
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.redis.celery_queue import Hint, HintPublisher, celery_app, fast_lane_list
from headrace.store.redis.hint_announcer import HintAnnouncer
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import Frame, stream_key
from headrace.workers.connections import Connections
from tests.processes import wait_for

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headrace % w1'"


@pytest.fixture
def junk() -> list[str]:
    return []


@pytest.fixture
def connections(settings: Settings, junk: list[str], turned_seal: None) -> Iterator[Connections]:
    given = settings.model_copy(update={"encryption_keys": "k1:", "lease_s": 20.0, "stream_ttl_s": 77})
    with closing(Connections(given, "w1", "base@1", lambda: junk.append("junk"), lambda: ["lora@2"])) as opened:
        yield opened


def sessions(database: Database, most: int) -> set[tuple[str, str]]:
    """The name and the limit for locks of so many sessions at once."""
    asked = text("SELECT current_setting('application_name'), current_setting('lock_timeout')")
    with ExitStack() as stack:
        opened = [stack.enter_context(database.begin()) for _ in range(most)]
        return {(row[0], row[1]) for connection in opened for row in connection.execute(asked)}


@pytest.mark.usefixtures("fresh_connections")
def test_renewals_have_a_session_of_their_own_and_wait_less_than_a_third_of_a_lease(
    connections: Connections, db: Database
) -> None:
    assert sessions(connections.jobs, 5) == {("headrace worker w1", "10s")}
    assert sessions(connections.leases, 1) == {("headrace leases w1", "5s")}
    assert sessions(connections.health, 2) == {("headrace health w1", "10s")}
    assert [*connections.jobs.seal.checks()] == ["k1"]
    connections.close()

    def left() -> int:
        with db.begin() as connection:
            return int(connection.execute(text(SESSIONS)).scalar_one())

    wait_for(lambda: left() == 0, "Postgres has no session of the worker")


def test_frames_are_sealed_kept_as_long_as_set_and_read_again_by_the_next_attempt(
    connections: Connections, redis_client: redis.Redis
) -> None:
    frames = [Frame("job_1", 1, seq, "a word", (7,)) for seq in range(1, 5)]
    assert connections.publisher.publish(frames) == 4
    name = stream_key("job_1")
    assert redis_client.xlen(name) == 4
    assert b"a word" not in str(redis_client.xrevrange(name, count=1)).encode()
    assert 70 <= redis_client.ttl(name) <= 77
    redis_client.persist(name)
    assert connections.fenced_logs.fence("job_1", 2)[-1] == frames[-1]
    assert 70 <= redis_client.ttl(name) <= 77


def test_hints_of_adapters_are_taken_too_and_junk_among_them_is_counted(
    connections: Connections, settings: Settings, redis_client: redis.Redis, junk: list[str]
) -> None:
    redis_client.lpush(fast_lane_list("lora@2"), b"no hint")
    assert (connections.fast_lane_hints.take(1.0), junk) == (None, ["junk"])
    announcer = HintAnnouncer(HintPublisher(celery_app(settings)))
    announcer.start()
    announcer.announce(Hint("job_1", "base@1", "x", goes_ahead=True))
    assert connections.fast_lane_hints.take(20.0) == "job_1"
    announcer.stop()
