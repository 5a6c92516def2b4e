"""The options of the Redis clients, without a server; and small parts that Redis holds for people and processes."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Event
from typing import Any

import pytest
import redis
from celery import Celery
from structlog.testing import capture_logs

from headrace.store.errors import SettingsError, Unavailable
from headrace.store.redis import live_workers
from headrace.store.redis.celery_queue import FastLaneHints, Hint, HintPublisher, celery_app, fast_lane_list
from headrace.store.redis.connection import address, broker_options, connect, unavailable
from headrace.store.redis.hint_announcer import HintAnnouncer
from headrace.store.redis.key_notices import publish_change
from headrace.store.redis.live_workers import SnapshotJob, SnapshotPublisher, WorkerSnapshot, WorkerTick
from headrace.store.redis_address import SentinelAddress, parse_sentinel
from headrace.store.settings import Settings
from tests.processes import wait_for
from tests.refusals import Naming
from tests.store.redis.messages import message_of

TCP, SOCKET, SENTINEL = "redis://h:7/3", "unix:///p.sock", "redis+sentinel://u:p@a,b:2/main/2"


def options_of(client: Any, *names: str) -> dict[str, Any]:
    """Return these options of a client's connections, and how often a command is repeated."""
    found = client.connection_pool.connection_kwargs
    return {name: found[name] for name in names if name in found} | {"retries": found["retry"].get_retries()}


def test_a_client_of_sentinel_has_its_database_and_login() -> None:
    with connect(SENTINEL) as client:
        assert options_of(client, "db", "username", "password") == {
            "db": 2,
            "username": "u",
            "password": "p",
            "retries": 1,
        }
        assert "primary main" in address(client)
    with connect(TCP) as client:
        assert address(client) == "h:7"
    with connect(SOCKET) as client:
        assert address(client) == "/p.sock"
    with connect("rediss+sentinel://a/main?ssl_check_hostname=FALSE&ssl_ca_certs=/ca") as client:
        tls = options_of(client, "ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "db")
    assert tls == {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": False,
        "ssl_ca_certs": "/ca",
        "db": 0,
        "retries": 1,
    }


def test_an_outage_is_told_in_one_line_with_the_address() -> None:
    told = unavailable(redis.ConnectionError("no route\nto host"), "h:7")
    assert (told.message, told.code) == (Naming("h:7", "no route"), "redis_unavailable")
    assert "host" not in told.message, "one line"
    assert "TimeoutError" in unavailable(TimeoutError()).message


def test_the_smallest_address_of_sentinel_has_these_defaults() -> None:
    assert parse_sentinel("redis+sentinel://a/main") == SentinelAddress((("a", 26379),), "main")
    assert parse_sentinel("redis+sentinel://:p@a/m%2Fn/0").service == "m/n"
    for wrong in ("http://h", "h:6379", ""):
        with pytest.raises(SettingsError, match=r"REDIS_URL: .*redis\+sentinel://"):
            connect(wrong)


def test_the_broker_of_sentinel_has_the_logins_of_both() -> None:
    found = broker_options("redis+sentinel://u:p@[::1]:1,b/main/2?sentinel_username=s&sentinel_password=q")
    assert found["broker_url"] == "sentinel://u:p@[::1]:1/2;sentinel://u:p@b:26379/2"
    asked = dict(found["broker_transport_options"]["sentinel_kwargs"])
    assert asked.pop("retry").get_retries() == 0
    assert asked == {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "username": "s", "password": "q"}
    assert found.keys() == {"broker_url", "broker_transport_options"}
    plain = broker_options("redis+sentinel://a/main")
    assert plain["broker_url"] == "sentinel://a:26379/0"
    assert plain["broker_transport_options"]["sentinel_kwargs"].keys().isdisjoint({"username", "password", "ssl"})


def test_celery_keeps_no_results_and_loses_no_worker(settings: Settings) -> None:
    app = celery_app(settings.model_copy(update={"redis_url": "redis://h/1", "celery_control": "off"}))
    assert app.conf.broker_transport_options == {
        "socket_timeout": 30.0,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "priority_steps": [-1, 0],
    }
    expected = {
        "broker_url": "redis://h/1",
        "broker_channel_error_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "result_backend": None,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_acks_late": False,
        "task_default_queue": "headrace",
        "task_default_priority": 0,
        "task_track_started": False,
        "task_send_sent_event": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_detect_quorum_queues": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "enable_utc": True,
    }
    assert {name: app.conf[name] for name in expected} == expected
    app.close()
    default = celery_app(settings)
    assert default.conf.worker_enable_remote_control is True
    default.close()


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    app = celery_app(settings)
    yield app
    app.close()


def test_hints_of_the_fast_lane_are_taken_for_each_queue_and_junk_is_counted(
    settings: Settings, redis_client: redis.Redis, app: Celery
) -> None:
    junk: list[int] = []
    lane = FastLaneHints(settings.redis_url, "a@1", lambda: junk.append(1), lambda: ["b@1"])
    hints = HintPublisher(app)
    hints.publish([Hint(f"job_{queue}", queue, "", goes_ahead=True) for queue in ("b@1", "a@1", "c@1")])
    assert redis_client.llen("a@1\x06\x16-1") == 1
    assert [lane.take(0.1) for _ in range(2)] == ["job_a@1", "job_b@1"]
    redis_client.lpush(fast_lane_list("a@1"), b"{}", json.dumps(message_of(Hint("job_d", "a@1", ""))), b"no json")
    assert [lane.take(0.1) for _ in range(3)] == [None, "job_d", None]
    assert len(junk) == 2
    assert hints.depth("c@1") == 1
    redis_client.set(fast_lane_list("a@1"), "not a list")
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        lane.take(0.1)
    lane.close()
    hints.close()


class Publisher:
    """A publisher that fails with these errors first, and waits until it may begin."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.may_begin = Event()
        self.sent: list[list[str]] = []
        self.is_closed = False

    def publish(self, hints: list[Hint]) -> None:
        assert self.may_begin.wait(60)
        self.sent.append([hint.job_id for hint in hints])
        if self.failures:
            raise self.failures.pop(0)

    def close(self) -> None:
        self.is_closed = True


def test_hints_that_wait_go_together_and_no_failure_ends_the_announcer() -> None:
    publisher: Any = Publisher(Unavailable("away"), ValueError("defect"))
    announcer = HintAnnouncer(publisher)
    with capture_logs() as logs:
        announcer.start()
        announcer.announce(Hint("first", "q", ""))
        publisher.may_begin.set()
        wait_for(lambda: publisher.sent, "the first call has begun")
        announcer.announce(Hint("second", "q", ""))
        wait_for(lambda: len(publisher.sent) == 2, "the second call has begun")
        publisher.may_begin.clear()
        for number in range(1002):
            announcer.announce(Hint(str(number), "q", ""))
        publisher.may_begin.set()
        announcer.stop()
        wait_for(lambda: sum(map(len, publisher.sent)) == 1004, "all hints were sent")
    assert publisher.sent[:2] == [["first"], ["second"]]
    assert [one for sent in publisher.sent[2:] for one in sent] == [str(number) for number in range(1002)]
    assert max(map(len, publisher.sent)) <= 1000
    assert publisher.is_closed
    found = [{name: line.get(name) for name in ("event", "log_level", "jobs", "reason")} for line in logs]
    assert found == [
        {"event": "hints_not_published", "log_level": "warning", "jobs": 1, "reason": "away"},
        {"event": "hints_not_published", "log_level": "error", "jobs": 1, "reason": None},
    ]


def test_an_announcer_that_was_never_started_is_stopped() -> None:
    publisher: Any = Publisher()
    HintAnnouncer(publisher).stop()
    assert publisher.is_closed


def snapshot(worker: str, queue: str, kept_s: int = 60) -> WorkerSnapshot:
    job = SnapshotJob(
        id="job", tenant_id="t", class_rank=1, attempt=1, age_s=2, input_tokens=5, output_tokens=7, max_tokens=20
    )
    return WorkerSnapshot(
        id=worker,
        queue=queue,
        engine=None,
        slots=8,
        running=1,
        waiting=0,
        free_blocks=10,
        total_blocks=40,
        lease_s=10,
        lease_age_s=1.5,
        jobs=[job],
        kept_s=kept_s,
    )


def tick(worker: str) -> WorkerTick:
    return WorkerTick(worker=worker, queue="q", tokens={"t": 5}, first_token_ms={"t": [1.5]}, running=1.0, slots=8)


class TestLiveWorkers:
    def test_snapshots_are_read_by_queue_with_their_age_and_go_with_time(self, redis_client: redis.Redis) -> None:
        publisher = SnapshotPublisher(redis_client)
        for worker, queue in (("w2", "b"), ("w3", "a"), ("w1", "b")):
            publisher.publish(snapshot(worker, queue), None)
        found = live_workers.read_workers(redis_client)
        assert [one for one, _ in found] == [snapshot("w3", "a"), snapshot("w1", "b"), snapshot("w2", "b")]
        assert all(0 <= age_s < 60 for _, age_s in found)
        redis_client.pexpire("headrace:live:worker:w1", 30_000)
        ages = {one.id: age_s for one, age_s in live_workers.read_workers(redis_client)}
        assert 30 <= ages["w1"] <= 60
        redis_client.delete("headrace:live:worker:w1")
        assert [one.id for one, _ in live_workers.read_workers(redis_client)] == ["w3", "w2"]
        assert redis_client.smembers("headrace:live:workers") == {b"w2", b"w3"}
        publisher.withdraw("w2")
        assert redis_client.smembers("headrace:live:workers") == {b"w3"}
        assert [one.id for one, _ in live_workers.read_workers(redis_client)] == ["w3"]
        publisher.publish(snapshot("w3", "a", kept_s=15), None)
        assert 0 < redis_client.ttl("headrace:live:worker:w3") <= 15

    def test_ticks_are_read_from_where_the_reader_was_and_go_with_time(self, redis_client: redis.Redis) -> None:
        publisher = SnapshotPublisher(redis_client)
        assert live_workers.read_ticks(redis_client, "0-0") == ([], "0-0")
        for worker in ("w1", "w2"):
            publisher.publish(snapshot(worker, "q"), tick(worker))
        found, last = live_workers.read_ticks(redis_client, "0-0")
        assert [one for _, one in found] == [tick("w1"), tick("w2")]
        seconds = [at for at, _ in found]
        now = datetime.now(UTC).timestamp()
        assert now - 600 < seconds[0] <= seconds[1] < now + 600
        assert live_workers.read_ticks(redis_client, last) == ([], last)
        publisher.publish(snapshot("w1", "q"), tick("w1"))
        assert [one for _, one in live_workers.read_ticks(redis_client, last)[0]] == [tick("w1")]
        assert 1100 < redis_client.ttl("headrace:live:history") <= 1200
        first, _ = redis_client.xrange("headrace:live:history", count=2)
        assert live_workers.read_ticks(redis_client, first[0].decode())[0] != []

    def test_fields_of_an_older_release_are_absent(self) -> None:
        older = snapshot("w", "q").model_dump(exclude={"quiet_s", "kept_s", "is_reserved"})
        found = WorkerSnapshot.model_validate(older)
        assert (found.quiet_s, found.kept_s, found.is_reserved) == (None, 15, False)


def test_a_notice_names_what_has_changed(redis_client: redis.Redis) -> None:
    with redis_client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("headrace:keys")
        assert listener.get_message(timeout=60) is None
        publish_change(redis_client, "key_1")
        message = listener.get_message(timeout=60)
    assert message is not None
    assert message["data"] == b"key_1"
    with connect("redis://127.0.0.1:1/0") as nowhere, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        publish_change(nowhere, "key_1")
