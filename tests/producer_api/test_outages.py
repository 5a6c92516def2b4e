"""Redis stopped, frozen, read-only or full: jobs are accepted and read as usual, and no request waits for Redis."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest

from headrace.cli.local.valkey import LocalValkey
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.redis.connection import CircuitBreaker, connect
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.folders import reachable_folder
from tests.processes import wait_for
from tests.producer_api.calling import PROMPT
from tests.producer_api.serving import ApiServer, serving

QUICK_S = 0.8
"""Less than the shortest time-out towards Redis."""


@pytest.fixture
def valkey() -> Iterator[LocalValkey]:
    """A server that these tests may stop."""
    with reachable_folder() as folder:
        valkey = LocalValkey(Path(folder) / "kv", Path(folder) / "valkey.log")
        valkey.start()
        yield valkey
        valkey.stop()


@pytest.fixture
def server(settings: Settings, model: ModelVersion, valkey: LocalValkey) -> Iterator[ApiServer]:
    with serving(settings.model_copy(update={"redis_url": valkey.url})) as server:
        yield server


@contextmanager
def stopped(valkey: LocalValkey) -> Iterator[None]:
    """No process listens."""
    valkey.stop()
    yield
    valkey.start()


@contextmanager
def frozen(valkey: LocalValkey) -> Iterator[None]:
    """It listens and never answers, like a broken connection."""
    assert valkey.child is not None
    os.kill(valkey.child.pid, signal.SIGSTOP)
    yield
    os.kill(valkey.child.pid, signal.SIGCONT)


@contextmanager
def read_only(valkey: LocalValkey) -> Iterator[None]:
    """It is the replica of a missing server."""
    with connect(valkey.url) as client:
        client.replicaof("127.0.0.1", "1")
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def full(valkey: LocalValkey) -> Iterator[None]:
    """It has no memory left."""
    with connect(valkey.url) as client:
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "0")


Outage = Callable[[LocalValkey], AbstractContextManager[None]]


@pytest.mark.parametrize("outage", [stopped, frozen, read_only, full])
def test_submit_and_poll_go_on_and_wait_for_nothing(
    api: httpx2.Client, db: Database, tenant: str, valkey: LocalValkey, outage: Outage
) -> None:
    api.post("/v1/jobs", json=PROMPT).raise_for_status()
    with outage(valkey):
        # The first request may run into the timeout.
        first, _ = timed(lambda: api.post("/v1/jobs", json=PROMPT))
        assert first.status_code == 202
        submits_took_s, polls_took_s = [], []
        for _ in range(12):
            answer, took_s = timed(lambda: api.post("/v1/jobs", json=PROMPT))
            submits_took_s.append(took_s)
            assert answer.status_code == 202
            job_id = answer.json()["id"]
            succeed(db, job_id)
            answer, took_s = timed(lambda job_id=job_id: api.get(f"/v1/jobs/{job_id}", params={"wait": 5}))
            polls_took_s.append(took_s)
            assert answer.json()["status"] == "succeeded"
        cancelled = api.post(f"/v1/jobs/{first.json()['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        # A time-out would show in each of them; most may take long on a busy machine.
        assert min(submits_took_s) < QUICK_S, submits_took_s
        assert min(polls_took_s) < QUICK_S, polls_took_s

    def is_announced() -> bool:
        job_id = api.post("/v1/jobs", json=PROMPT).json()["id"]
        succeed(db, job_id)
        return jobs.get(db, tenant, job_id).announced_at is not None

    for job in api.get("/v1/jobs", params={"status": "queued"}).json()["data"]:
        succeed(db, job["id"])  # so that no request waits before it
    wait_for(is_announced, "its hint goes to Redis again")


def timed(call: Callable[[], httpx2.Response]) -> tuple[httpx2.Response, float]:
    """Return the answer and the seconds that it took."""
    began = time.monotonic()
    return call(), time.monotonic() - began


def succeed(db: Database, job_id: str) -> None:
    """Run the job."""
    (held,) = claim(db, "w", "tiny@1", [job_id], 60).values()
    ended = Finish(job_id, held.epoch, JobState.SUCCEEDED, {"text": "", "finish_reason": "stop"}, None, None)
    assert finish(db, [ended]) == {job_id}


def test_the_watch_notices_the_way_back(valkey: LocalValkey) -> None:
    watch = CircuitBreaker(valkey.url)
    watch.start()
    try:
        assert not watch.is_away
        with frozen(valkey):
            watch.failed()
            assert watch.is_away
            assert not wait_shortly(lambda: not watch.is_away), "no answer, so nobody asks"
        wait_for(lambda: not watch.is_away, "it answers again")
    finally:
        watch.stop()


def wait_shortly(condition: Callable[[], bool]) -> bool:
    """Return whether the condition came true within a second and a half."""
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
