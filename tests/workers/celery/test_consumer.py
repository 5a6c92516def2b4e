"""Hints are taken without acknowledgement: the hooks of kombu and Celery that this stands on."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import redis
from kombu.entity import Queue

from headrace.store.redis.celery_queue import Hint, HintPublisher, celery_app, fast_lane_list, hint_of
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers.celery.consumer import take_without_acknowledging
from tests.processes import Process, free_port, wait_for
from tests.store.redis.messages import message_of
from tests.workers.conftest import Bench

QUEUE = "tiny@1"
HINT = message_of(Hint("job_1", QUEUE, "generate:tiny@1"))


def changed(message: Any, path: str, value: object) -> Any:
    """Return the message with another value at ``path``; ``...`` takes the field away."""
    message = json.loads(json.dumps(message))
    *outer, last = path.split("/")
    place = message
    for name in outer:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return message


PLACES = ("body", "content-type", "content-encoding", "headers", "headers/task", "headers/id", "properties")
PLACES += ("properties/delivery_info", "properties/delivery_tag", "properties/body_encoding")
VALUES = (..., None, 7, "", "\0", "x", [], {}, ["x"], {"x": 1}, True)
ODD = [
    ("headers/eta", "2999-01-01T00:00:00"),
    ("headers/expires", "x"),
    ("headers/timelimit", 7),
    ("headers/compression", "gzip"),
    ("headers/id", "x" * 1000),
    ("body", b64encode(b"not json").decode()),
    ("body", b64encode(b"[]").decode()),
    ("body", b64encode(b"[[1], {}, {}]").decode()),
]
CHANGED = [json.dumps(changed(HINT, path, value)) for path in PLACES for value in VALUES]
CHANGED += [json.dumps(changed(HINT, path, value)) for path, value in ODD]
JSON = ("null", "7", '"x"', "[]", "{}", '{"properties": {}}', "[" * 5000, '{"__type__": "uuid", "__value__": 1}')
JUNK: list[str | bytes] = [b"not json", b"", b"\xff\xfe", b"\0", *JSON]
JUNK += [junk for junk in CHANGED if hint_of(json.loads(junk)) is None]


def test_what_is_published_is_a_hint_and_nothing_else_is() -> None:
    assert hint_of(HINT) == "job_1"
    assert hint_of(changed(HINT, "headers/shadow", ...)) == "job_1", "what Celery can do without"
    assert [json.loads(junk) for junk in CHANGED if hint_of(json.loads(junk)) is not None] == [
        changed(HINT, "properties/delivery_info", {}),
        changed(HINT, "properties/delivery_info", {"x": 1}),
        *(changed(HINT, "properties/delivery_tag", text) for text in ("", "\0", "x")),
    ], "what Celery does not look at"


def test_taking_a_hint_leaves_nothing_in_redis(settings: Settings, redis_client: redis.Redis) -> None:
    app = celery_app(settings)
    take_without_acknowledging(app, lambda: None)
    publisher = HintPublisher(app)
    publisher.publish([Hint(f"job_{n}", QUEUE, "generate:tiny@1") for n in range(3)])
    taken: list[str] = []

    def on_message(message: Any) -> None:
        assert redis_client.exists("unacked", "unacked_index") == 0
        calls = redis_client.info("stats")["total_commands_processed"]
        message.ack_log_error(None, ())  # as Celery calls it
        assert redis_client.info("stats")["total_commands_processed"] == calls + 1, "no command but this INFO"
        taken.append(message.headers["id"])

    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection, queues=[Queue(QUEUE)])
        consumer.on_message = on_message
        with consumer:
            while len(taken) < 3:
                connection.drain_events(timeout=60)
    publisher.close()
    assert taken == ["job_0", "job_1", "job_2"]
    # With acknowledgements a closed connection requeues unacknowledged messages.
    assert not redis_client.keys("unacked*")
    assert redis_client.llen(QUEUE) == 0


@pytest.fixture
def junk_dropped(start_worker: Callable[..., Process]) -> Iterator[Callable[[], int]]:
    """Start a worker; return the number of dropped messages."""
    port = free_port()
    worker = start_worker(worker_metrics_port=port, lease_s=30)

    def dropped() -> int:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            metrics = answer.read().decode()
        (line,) = (line for line in metrics.splitlines() if line.startswith("headrace_junk_dropped_total "))
        return int(float(line.split()[1]))

    yield dropped
    assert worker.exit_code is None, worker.log()
    assert not worker.events("redis_is_silent")
    assert "Connection to broker lost" not in worker.log()


def test_junk_in_the_queue_costs_no_worker_its_life(
    bench: Bench, redis_client: redis.Redis, junk_dropped: Callable[[], int]
) -> None:
    for number, junk in enumerate(JUNK):
        redis_client.lpush(bench.queue, junk)
        if number % 20 == 0:
            bench.publish_hints(bench.submit())
    redis_client.lpush(fast_lane_list(bench.queue), *JUNK)
    (last,) = bench.submit()
    bench.wait_state(last, JobState.SUCCEEDED)
    wait_for(lambda: junk_dropped() == 2 * len(JUNK), lambda: f"{junk_dropped()} of {2 * len(JUNK)}")


@pytest.mark.full
def test_junk_in_the_mailbox_costs_no_worker_its_life(
    settings: Settings, bench: Bench, redis_client: redis.Redis, junk_dropped: Callable[[], int]
) -> None:
    mailbox = f"/{redis_client.connection_pool.connection_kwargs.get('db', 0)}.celery.pidbox"
    bodies = ({}, [], {"method": 7}, {"method": "ping", "reply_to": 7}, {"destination": 7, "method": "ping"})
    commands = [changed(HINT, "body", b64encode(json.dumps(body).encode()).decode()) for body in bodies]
    for junk in (*JUNK, *map(json.dumps, commands)):
        # For some it subscribes anew, and hears nothing meanwhile.
        wait_for(lambda junk=junk: redis_client.publish(mailbox, junk) == 1, "the worker listens")  # type: ignore[misc]
    (job_id,) = bench.submit()
    bench.wait_state(job_id, JobState.SUCCEEDED)
    answers = celery_app(settings).control.ping(timeout=60, limit=1)
    assert len(answers) == 1
    assert junk_dropped()
