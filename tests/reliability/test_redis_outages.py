"""P7: Redis may be down, wiped, full, read-only or frozen: submit and poll work, jobs finish, none is lost.

A client submits at a steady rate through one outage after the other, each longer than a worker takes to notice. What
ended in which of them is read from Postgres, by its own clock.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx2
import pytest

from headrace.cli.local.valkey import LocalValkey
from headrace.store.jobs.jobs import Job
from headrace.store.redis.connection import connect
from tests.reliability.client import Client
from tests.reliability.conftest import Report
from tests.reliability.jobs import check_answer, check_ended_once
from tests.reliability.rig import Databases, Kept, Stack

MODEL = "outage"
NUM_TOKENS = 16
EVERY_S = 0.1
SHORT_S = 8.0
LONG_S = 60.0


@pytest.fixture
def valkey(folder: Path) -> Iterator[LocalValkey]:
    valkey = LocalValkey(folder / "kv", folder / "valkey.log")
    valkey.start()
    yield valkey
    valkey.stop()


@dataclass
class Load:
    """A client that submits and polls at a steady rate, whatever happens."""

    client: Client
    accepted: dict[str, str] = field(default_factory=dict)
    submit_s: list[float] = field(default_factory=list)
    poll_s: list[float] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)
    """When each submit began and was answered, by time.monotonic."""
    bad: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        stopped = threading.Event()
        with ThreadPoolExecutor(64) as threads:

            def submit() -> None:
                number = 0
                while not stopped.wait(EVERY_S):
                    number += 1
                    threads.submit(self._submit_one, f"job {number}")

            thread = threading.Thread(target=submit)
            thread.start()
            yield
            stopped.set()
            thread.join()

    def _submit_one(self, prompt: str) -> None:
        sampling = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        body = {"model": MODEL, "input": {"prompt": prompt}, "sampling": sampling}
        began = time.monotonic()
        answer = self._timed(self.submit_s, "POST", "/v1/jobs", json=body)
        if answer is not None and answer.status_code == 202:
            self.answered.append((began, time.monotonic()))
            job_id = answer.json()["id"]
            self.accepted[job_id] = prompt
            self._timed(self.poll_s, "GET", f"/v1/jobs/{job_id}")

    def _timed(self, times_s: list[float], method: str, path: str, **request: Any) -> httpx2.Response | None:
        began = time.monotonic()
        try:
            answer = self.client.once(method, path, **request)
        except httpx2.TransportError as error:
            self.bad.append(type(error).__name__)
            return None
        times_s.append(time.monotonic() - began)
        if answer.status_code >= 400:
            self.bad.append(f"{method} {answer.status_code}")
        return answer


@dataclass
class Window:
    """When an outage began and ended, by the database's clock and by time.monotonic."""

    name: str
    began_at: datetime
    ended_at: datetime
    began: float
    ended: float


class Outages:
    """Makes one outage after the other and remembers when each was."""

    def __init__(
        self, stack: Stack, valkey: LocalValkey, *, long_s: float, short_s: float, wipe_every_s: float
    ) -> None:
        self._stack = stack
        self._valkey = valkey
        self._long_s = long_s
        self._short_s = short_s
        self._wipe_every_s = wipe_every_s
        self.windows: list[Window] = []
        self.num_wipes = 0

    def all(self) -> None:
        for outage in (self._stopped, self._wiped, self._read_only, self._full, self._frozen):
            began_at, began = self._now(), time.monotonic()
            outage()
            self.windows.append(
                Window(outage.__name__.strip("_"), began_at, self._now(), began, ended=time.monotonic())
            )
            time.sleep(1)

    def _stopped(self) -> None:
        self._valkey.stop()
        time.sleep(self._long_s)
        self._valkey.start()

    def _wiped(self) -> None:
        until = time.monotonic() + self._long_s
        with connect(self._valkey.url) as client:
            while time.monotonic() < until:
                client.flushall()
                self.num_wipes += 1
                time.sleep(self._wipe_every_s)

    def _read_only(self) -> None:
        with connect(self._valkey.url) as client:
            client.replicaof("127.0.0.1", "1")
            time.sleep(self._short_s)
            client.replicaof("NO", "ONE")

    def _full(self) -> None:
        with connect(self._valkey.url) as client:
            client.config_set("maxmemory", "1")
            time.sleep(self._short_s)
            client.config_set("maxmemory", "0")

    def _frozen(self) -> None:
        assert self._valkey.child is not None
        os.kill(self._valkey.child.pid, signal.SIGSTOP)
        time.sleep(self._short_s)
        os.kill(self._valkey.child.pid, signal.SIGCONT)

    def _now(self) -> datetime:
        now: datetime = self._stack.query("SELECT clock_timestamp() AS now")[0].now
        return now


@pytest.mark.full
def test_p7_redis_may_be_away_in_every_way(
    databases: Databases, folder: Path, valkey: LocalValkey, is_full: bool, report: Report
) -> None:
    with databases.stack(folder, valkey.url) as stack:
        stack.register(MODEL)
        api, client = stack.api()
        kept = {"api": api, "worker": stack.worker(MODEL), "dispatcher": stack.dispatcher()}
        for process in kept.values():
            process.wait_ready()
        load = Load(client)
        long_s, short_s, wipe_every_s = (LONG_S, 20.0, 5.0) if is_full else (SHORT_S, SHORT_S, 1.0)
        outages = Outages(stack, valkey, long_s=long_s, short_s=short_s, wipe_every_s=wipe_every_s)
        with load.running():
            time.sleep(1)
            outages.all()
        figures = judge(stack, load, outages, kept)
        client.close()
        report("P7.one-client", seed=0, **figures)


def judge(stack: Stack, load: Load, outages: Outages, kept: dict[str, Kept]) -> dict[str, Any]:
    """Hold what came of the load against the promise; return the figures."""
    ended = stack.wait_ended(list(load.accepted))
    for job in ended:
        check_answer(job, load.accepted[job.id], NUM_TOKENS)
    ends = check_ended_once(stack, list(load.accepted))
    assert load.bad == []
    assert {name: process.exits for name, process in kept.items()} == {name: [] for name in kept}
    finished = {window.name: num_within(window, ended) for window in outages.windows}
    assert min(finished.values()) > 0, finished
    assert outages.num_wipes > 0
    answered = {
        window.name: sum(window.began <= began and end <= window.ended for began, end in load.answered)
        for window in outages.windows
    }
    assert min(answered.values()) > 0, "no submit waits until Redis is back"
    return {
        "submitted": len(load.submit_s),
        "accepted": len(load.accepted),
        "refused": len(load.bad),
        **ends,
        "wipes": outages.num_wipes,
        "outage_s": {w.name: round((w.ended_at - w.began_at).total_seconds(), 1) for w in outages.windows},
        "answered_while": answered,
        "finished_while": finished,
        "submit_ms": in_ms(load.submit_s),
        "poll_ms": in_ms(load.poll_s),
    }


def num_within(window: Window, ended: Sequence[Job]) -> int:
    """Return how many jobs were accepted and ended in the window."""
    return sum(
        job.created_at >= window.began_at and job.completed_at is not None and job.completed_at <= window.ended_at
        for job in ended
    )


def in_ms(times_s: list[float]) -> dict[str, float]:
    cuts = quantiles(times_s, n=100)
    return {"p50": round(1000 * cuts[49], 1), "p99": round(1000 * cuts[98], 1), "max": round(1000 * max(times_s), 1)}
