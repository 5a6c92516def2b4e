"""Two dispatchers that both believe to lead, as after a lock that was lost unnoticed: all is done, and done once."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest
import redis

from headrace.store.db.leader_election import lead
from headrace.store.jobs import jobs
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import start_generation
from headrace.workers.dispatcher.dispatcher import Dispatcher
from tests.processes import WAIT_S, wait_for

from .conftest import Bench
from .receiver import Receiver

WINDOW = 20


@pytest.fixture
def both_lead(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    locks = count(1)
    monkeypatch.setattr("headrace.store.jobs.sweeps.leader_lock", lambda db: lead(db, next(locks)))
    allowed = {
        "webhook_allow_http": True,
        "webhook_allow_networks": ("127.0.0.0/8",),
        "ready_window": WINDOW,
        "reannounce_s": 60,
        "lease_s": 60.0,  # a pause of half a lease would look like an outage, after which no worker is blamed
    }
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(leading(settings.model_copy(update=allowed)))
        yield


@contextmanager
def leading(settings: Settings) -> Iterator[None]:
    dispatcher = Dispatcher(settings)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    yield
    dispatcher.stop()
    thread.join(WAIT_S)
    dispatcher.close()


def test_everything_happens_and_nothing_twice(
    bench: Bench, redis_client: redis.Redis, request: pytest.FixtureRequest
) -> None:
    receiver = Receiver()
    hook = {"url": receiver.url()}
    lost, overdue, waiting = (
        accept(bench, 20, max_attempts=1, webhook=hook),
        accept(bench, 20, deadline_s=0.01, webhook=hook),
        accept(bench, 60, webhook=hook),
    )
    claim(bench.db, "mortal", bench.queue, lost, 0.01)
    start_generation(redis_client)  # a Redis that both know
    request.getfixturevalue("both_lead")
    hints = serve(bench, redis_client, waiting)
    ended = bench.wait_ended([*lost, *overdue, *waiting])
    assert Counter(job.state for job in ended) == {
        JobState.FAILED: 20,
        JobState.EXPIRED: 20,
        JobState.SUCCEEDED: 60,
    }
    assert set(Counter(hints).values()) == {1}, "each was announced once"
    calls = receiver.wait_calls(100)
    told = Counter(json.loads(call.body)["data"]["id"] for call in calls)
    assert told == dict.fromkeys([*lost, *overdue, *waiting], 1), "each end was told once"
    receiver.close()


def accept(bench: Bench, count: int, **changes: object) -> list[str]:
    """Store jobs without hints."""
    new = [bench.new_job(announce=False, **changes) for _ in range(count)]
    jobs.accept(bench.db, new)
    return [job.id for job in new]


def serve(bench: Bench, client: redis.Redis, job_ids: list[str]) -> list[str]:
    """Take hints and end their jobs until all are ended; return the hints as they came."""
    hints: list[str] = []

    def take() -> bool:
        assert client.llen(bench.queue) <= 2 * WINDOW
        while (raw := client.rpop(bench.queue)) is not None:
            job_id = json.loads(raw)["headers"]["id"]
            hints.append(job_id)
            for held in claim(bench.db, "w", bench.queue, [job_id], 60).values():
                finish(bench.db, [Finish(held.job_id, held.epoch, JobState.SUCCEEDED, None, None, None)])
        return bench.states(job_ids)[JobState.SUCCEEDED] == len(job_ids)

    wait_for(take, "all were announced and ended")
    return hints
