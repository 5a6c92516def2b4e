"""Attempts that a worker took without a message are seen by Celery's event receivers, as Flower is one."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.store.jobs import jobs
from headrace.store.redis.celery_queue import celery_app
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers.dispatcher.lost_attempts import LostAttemptEvents
from tests.processes import wait_for
from tests.workers.conftest import Bench, StartWorker


@pytest.fixture
def heard(settings: Settings) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The events of each task, as a receiver hears them."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    app = celery_app(settings)

    def note(event: dict[str, Any]) -> None:
        if "uuid" in event:
            found[event["uuid"]].append(event)

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        # Without a time-out: a receiver that begins anew misses what is sent meanwhile.
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        yield found
        receiver.should_stop = True
        thread.join(30)
    app.close()


def test_jobs_taken_from_postgres_are_reported_with_their_ends(
    bench: Bench, start_worker: StartWorker, heard: dict[str, list[dict[str, Any]]]
) -> None:
    """The worker is told by nobody that there is a receiver."""
    start_worker(direct_after_s=0.2)

    def taken_silently(**changes: Any) -> str:
        """A job whose hint is never sent."""
        new = bench.new_job(**changes)
        jobs.accept(bench.db, [new])
        bench.wait_ended([new.id])
        return new.id

    good, bad = taken_silently(), taken_silently(sampling={"max_tokens": 9000})
    wait_for(lambda: len(heard[good]) == 3 and len(heard[bad]) == 3, lambda: str(dict(heard)))
    assert [event["type"] for event in heard[good]] == ["task-received", "task-started", "task-succeeded"]
    assert [event["type"] for event in heard[bad]] == ["task-received", "task-started", "task-failed"]
    assert heard[bad][2]["exception"] == "JobFailed('context_length_exceeded')"
    assert heard[good][0]["name"] == "generate:fake@1"


def test_a_hint_for_a_job_that_runs_already_tells_no_end(
    bench: Bench, start_worker: StartWorker, heard: dict[str, list[dict[str, Any]]]
) -> None:
    start_worker(fake_step_ms=20)
    (running,) = bench.submit(1, sampling={"max_tokens": 200})
    wait_for(lambda: bench.job(running).state is JobState.RUNNING, "it runs")
    bench.publish_hints([running])
    bench.wait_ended([running])
    wait_for(lambda: "task-succeeded" in [event["type"] for event in heard[running]], lambda: str(dict(heard)))
    told = [event["type"] for event in heard[running]]
    assert told == [*["task-received", "task-started"] * 2, "task-succeeded"]


def test_the_end_of_a_dead_workers_attempt_is_told_by_the_sweep(
    settings: Settings, heard: dict[str, list[dict[str, Any]]]
) -> None:
    app = celery_app(settings)
    lost = [
        ("job_again", "fake-7@host:7:boot", JobState.QUEUED),
        ("job_failed", "fake-7@host:7:boot", JobState.FAILED),
        ("job_cancelled", "fake-7@host:7:boot", JobState.CANCELLED),
    ]

    def are_heard() -> bool:
        LostAttemptEvents(app).send(lost)  # until the receiver listens
        return len(heard) == len(lost)

    wait_for(are_heard, lambda: str(dict(heard)))
    told = {job_id: (events[0]["type"], events[0]["hostname"]) for job_id, events in heard.items()}
    assert told == {
        "job_again": ("task-retried", "fake-7@host"),
        "job_failed": ("task-failed", "fake-7@host"),
        "job_cancelled": ("task-revoked", "fake-7@host"),
    }
    app.close()
