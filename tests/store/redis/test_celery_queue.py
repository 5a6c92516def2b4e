"""Celery's sending side on a real broker: what a message holds, and what happens without a broker."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace

import pytest
import redis
from celery import Celery
from kombu.connection import Connection

from headrace.store.errors import Unavailable
from headrace.store.redis.celery_queue import TASK, Hint, HintPublisher, celery_app, hint_of
from headrace.store.redis.connection import broker_options
from headrace.store.settings import Settings
from tests.processes import wait_for
from tests.store.redis.messages import message_of

QUEUE = "tiny@1"


@pytest.fixture
def app(settings: Settings) -> Celery:
    return celery_app(settings)


@pytest.fixture
def publisher(app: Celery) -> Iterator[HintPublisher]:
    with closing(HintPublisher(app)) as publisher:
        yield publisher


def hints(count: int) -> list[Hint]:
    return [Hint(f"job_{index}", QUEUE, "generate:tiny@1") for index in range(count)]


def away(settings: Settings, url: str) -> HintPublisher:
    return HintPublisher(celery_app(settings.model_copy(update={"redis_url": url})))


def test_a_message_is_a_job_id_and_a_name_for_flower(publisher: HintPublisher, redis_client: redis.Redis) -> None:
    publisher.publish(hints(1))
    (raw,) = redis_client.lrange(QUEUE, 0, -1)
    message = json.loads(raw)
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == (["job_0"], {})
    assert message["content-type"] == "application/json"
    headers = message["headers"]
    assert headers["task"] == TASK
    assert headers["id"] == headers["argsrepr"] == "job_0"
    assert headers["shadow"] == "generate:tiny@1"
    assert message["properties"]["priority"] == 0


def test_a_message_is_what_celery_sends_and_a_message_of_celery_is_a_hint(
    app: Celery, publisher: HintPublisher, redis_client: redis.Redis
) -> None:
    with app.connection() as connection:
        app.send_task(TASK, args=["job_1"], task_id="job_1", queue=QUEUE, producer=app.amqp.Producer(connection))
    publisher.publish([Hint("job_1", QUEUE, "generate:tiny@1")])
    ours, theirs = (json.loads(raw) for raw in redis_client.lrange(QUEUE, 0, -1))
    assert (hint_of(theirs), hint_of(ours)) == ("job_1", "job_1")
    assert ours["body"] == theirs["body"]
    assert ours["headers"].keys() == theirs["headers"].keys()
    assert ours["properties"].keys() == theirs["properties"].keys()


def test_a_hint_that_would_wait_expire_or_be_unpacked_is_none() -> None:
    def read(job_id: str = "job_1", **headers: object) -> str | None:
        message = message_of(Hint(job_id, QUEUE, ""))
        message["headers"] |= headers
        return hint_of(message)

    assert read(eta=None, expires=None, timelimit=None, compression=None) == "job_1"
    never = {"eta": "2026-11-29", "expires": 9, "timelimit": [1, None], "compression": "gzip"}
    assert [read(**{name: value}) for name, value in never.items()] == [None] * 4
    assert [read("j" * 128), read("j" * 129), read("a b"), read("é")] == ["j" * 128, None, None, None]


def test_hints_are_taken_in_the_order_they_were_sent(publisher: HintPublisher, app: Celery) -> None:
    publisher.publish(hints(50))
    taken: list[str] = []
    with app.connection_for_read() as connection, connection.SimpleBuffer(QUEUE) as queue:
        while len(taken) < 50:
            message = queue.get(timeout=60)
            taken.append(message.payload[0][0])
            message.ack()
    assert taken == [hint.job_id for hint in hints(50)]


def test_a_hint_that_goes_ahead_is_taken_before_those_that_stand_in_line(publisher: HintPublisher, app: Celery) -> None:
    publisher.publish([*hints(3), replace(hints(5)[3], goes_ahead=True), replace(hints(5)[4], goes_ahead=True)])
    assert publisher.depth(QUEUE) == 5
    taken: list[str] = []
    with app.connection_for_read() as connection, connection.SimpleBuffer(QUEUE) as queue:
        while len(taken) < 5:
            message = queue.get(timeout=60)
            taken.append(message.payload[0][0])
            message.ack()
    names = [hint.job_id for hint in hints(5)]
    assert taken == [*names[3:], *names[:3]]


def test_depth_counts_what_waits(publisher: HintPublisher) -> None:
    assert publisher.depth(QUEUE) == 0
    publisher.publish(hints(7))
    publisher.publish([])
    assert publisher.depth(QUEUE) == 7


def test_a_call_is_one_round_trip_however_many_hints(publisher: HintPublisher, redis_client: redis.Redis) -> None:
    publisher.publish(hints(1))
    before = redis_client.info("stats")["total_reads_processed"]
    publisher.publish(hints(200))
    # A read takes at most 16 kB, so a pipeline is a few; a call for each hint would be two hundred.
    assert redis_client.info("stats")["total_reads_processed"] - before < 100


def test_a_wiped_redis_takes_hints_again(publisher: HintPublisher, redis_client: redis.Redis) -> None:
    publisher.publish(hints(3))
    redis_client.flushall()
    publisher.publish(hints(2))
    assert publisher.depth(QUEUE) == 2


def test_a_cut_connection_costs_one_call_at_most(publisher: HintPublisher, redis_client: redis.Redis) -> None:
    publisher.publish(hints(1))
    redis_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def is_published() -> bool:
        with suppress(Unavailable):
            publisher.publish(hints(1))
            return True
        return False

    wait_for(is_published, "a call has its own connection again")
    assert publisher.depth(QUEUE) >= 2


def test_many_threads_share_a_publisher(publisher: HintPublisher) -> None:
    threads = [threading.Thread(target=publisher.publish, args=(hints(25),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.depth(QUEUE) == 200


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///nonexistent/valkey.sock?db=0"])
def test_a_redis_that_is_away_fails_at_once_in_one_line(settings: Settings, url: str) -> None:
    publisher = away(settings, url)
    start = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        publisher.publish(hints(1))
    assert time.monotonic() - start < 5, "it did not try again and again"
    assert caught.value.code == "redis_unavailable"
    assert "\n" not in caught.value.message


def test_a_redis_that_hangs_fails_within_two_seconds_and_those_in_line_do_not_wait_again(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        publisher = away(settings, f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        failures: list[Unavailable] = []

        def call() -> None:
            with pytest.raises(Unavailable) as caught:
                publisher.publish(hints(1))
            failures.append(caught.value)

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failures) == 6
        # One time-out, and not six in a row; a thread that comes a second later tries again.
        assert 1 <= num_connections(server) <= 3


def num_connections(server: socket.socket) -> int:
    """Return how many clients have connected, and none of which was accepted yet."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_a_publisher_tries_again_after_a_pause(settings: Settings, redis_client: redis.Redis) -> None:
    now = 100.0
    publisher = HintPublisher(celery_app(settings), clock=lambda: now)
    redis_client.set(QUEUE, "not a list")
    with pytest.raises(Unavailable):
        publisher.publish(hints(1))
    redis_client.delete(QUEUE)
    now = 100.9
    with pytest.raises(Unavailable, match="moment ago"):
        publisher.publish(hints(1))
    now = 101.0
    publisher.publish(hints(1))
    assert publisher.depth(QUEUE) == 1
    publisher.close()


def test_only_json_is_accepted_and_nothing_is_kept(app: Celery) -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    assert app.conf.result_backend is None
    assert not app.conf.task_acks_late
    assert app.conf.broker_channel_error_retry


@pytest.mark.parametrize(
    ("redis_url", "expected"),
    [
        ("unix:///run/valkey.sock?db=2", "redis+socket:///run/valkey.sock?virtual_host=2"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock?virtual_host=0"),
        ("unix://:pw@/run/valkey.sock?db=1", "redis+socket://:pw@/run/valkey.sock?virtual_host=1"),
        ("redis://host:6380/3", "redis://host:6380/3"),
        ("redis://host:6380?db=3", "redis://host:6380/3"),
        ("redis://:p%40w@host/0", "redis://:p%40w@host/0"),
        ("rediss://host:6380/1", "rediss://host:6380/1?ssl_cert_reqs=required"),
        ("rediss://host/1?ssl_cert_reqs=none", "rediss://host/1?ssl_cert_reqs=none"),
    ],
)
def test_one_address_two_spellings(redis_url: str, expected: str) -> None:
    assert broker_options(redis_url)["broker_url"] == expected


def test_a_tls_address_is_not_spoken_to_in_the_clear() -> None:
    with Connection(broker_options("rediss://host:6380/1")["broker_url"]) as connection:
        assert connection.ssl
