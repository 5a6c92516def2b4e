"""P8: cancels that race the jobs' own ends, with Redis and without: one end each, and the engine's room given back."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx2
import pytest

from headrace.cli.local.valkey import LocalValkey
from headrace.store.jobs.jobs import Job
from tests.processes import free_port, wait_for
from tests.reliability.client import Client
from tests.reliability.conftest import Report
from tests.reliability.jobs import check_ended_once
from tests.reliability.rig import Databases, Stack

SEED = 20261126
MODEL = "cancelling"
ROOM = frozenset({"running", "waiting", "free_blocks", "total_blocks"})


@contextmanager
def redis_of_its_own(folder: Path) -> Iterator[LocalValkey]:
    """A Redis that the test may stop."""
    valkey = LocalValkey(folder / "own", folder / "own.log")
    valkey.start()
    try:
        yield valkey
    finally:
        valkey.stop()


@pytest.mark.parametrize("has_redis", [True, pytest.param(False, marks=pytest.mark.full)], ids=["redis", "no redis"])
def test_p8_one_end_each(databases: Databases, folder: Path, is_full: bool, report: Report, *, has_redis: bool) -> None:
    num_jobs = 200 if is_full else 60
    with redis_of_its_own(folder) as valkey, databases.stack(folder, valkey.url) as stack:
        version = stack.register(MODEL)
        port = free_port()
        # So slow that many cancels come in time on a busy machine, and so fast that many do not on an idle one.
        stack.worker(MODEL, worker_metrics_port=port, max_slots=16, fake_step_ms=10).wait_ready()
        stack.dispatcher()
        api, client = stack.api()
        api.wait_ready()
        if not has_redis:
            valkey.stop()
        lengths = [Random(f"{SEED}/{n}").randint(5, 600) for n in range(num_jobs)]
        ids = stack.accept([stack.new_job(version, f"job {n}", length) for n, length in enumerate(lengths)])
        answers = race(stack, client, ids)
        ended = stack.wait_ended(ids)
        ends = check_ended_once(stack, ids)
        wait_for(lambda: is_empty(port), lambda: f"the engine's room is returned: {engine(port)}")
        figures = {**ends, "engine_at_the_end": engine(port)}
        client.close()
    check_fair_race(ended, answers, report, figures, has_redis=has_redis)


def race(stack: Stack, client: Client, ids: list[str]) -> list[int]:
    """Cancel each job at a random time between its start and its likely end; return the API's answers."""

    def cancel(numbered: tuple[int, str]) -> int:
        number, job_id = numbered
        wait_for(lambda: started(stack, job_id), "the job has started, or ended")
        time.sleep(Random(f"{SEED}/cancel/{number}").uniform(0, 2.0))
        return client.insist("POST", f"/v1/jobs/{job_id}/cancel").status_code

    with ThreadPoolExecutor(24) as threads:
        return list(threads.map(cancel, enumerate(ids)))


def started(stack: Stack, job_id: str) -> bool:
    (row,) = stack.query("SELECT state FROM jobs WHERE id = :id", id=job_id)
    return bool(row.state != "queued")


def check_fair_race(
    ended: list[Job], answers: list[int], report: Report, figures: dict[str, object], *, has_redis: bool
) -> None:
    states = Counter(str(job.state) for job in ended)
    kept = [job for job in ended if job.state == "cancelled" and job.usage and job.usage["output_tokens"] > 0]
    report(
        "P8" if has_redis else "P8.without-redis",
        seed=SEED,
        submitted=len(ended),
        answers=dict(Counter(answers)),
        states=dict(states),
        cancelled_with_partial_output=len(kept),
        asked_to_ended_ms=in_ms(ended),
        **figures,
    )
    assert set(answers) <= {200, 409}
    assert states.keys() == {"succeeded", "cancelled"}, "a race that one side always wins shows nothing"
    assert kept
    for job, answer in zip(ended, answers, strict=True):
        assert answer == 200 or job.state == "succeeded", "whoever was told that it had ended had lost the race"


def in_ms(ended: list[Job]) -> dict[str, int]:
    """From the request to the end of those that were cancelled, by the database's clock."""
    took = sorted(
        (job.completed_at - job.cancel_requested_at).total_seconds()
        for job in ended
        if job.state == "cancelled" and job.completed_at and job.cancel_requested_at
    )
    return {"p50": round(1000 * took[len(took) // 2]), "max": round(1000 * took[-1])}


def engine(port: int) -> dict[str, int]:
    """How many are inside the engine, and its blocks."""
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
    lines = [line.removeprefix("headrace_engine_").rpartition(" ") for line in text.splitlines() if line[0] != "#"]
    found = {name.partition("{")[0]: value for name, _, value in lines}
    return {name: int(float(found[name])) for name in ROOM}


def is_empty(port: int) -> bool:
    """True if no request is in the engine and all blocks are free."""
    now = engine(port)
    return now["running"] == now["waiting"] == 0 and now["free_blocks"] == now["total_blocks"] > 0
