"""The wait of one client for the job that answers it, without a server: its end, a disconnect, a server that stops."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from headrace.producer_api.jobs import synchronous
from headrace.producer_api.jobs.cancel import RETRY_GRACE_S
from headrace.producer_api.jobs.synchronous import ClientConnection
from headrace.producer_api.server.errors import Draining, SyncTimeout
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from tests.producer_api.answered_jobs import ended
from tests.stand_ins import stand_in

WAITING = replace(ended("x"), state=JobState.QUEUED)


def connection(now: Job, *, stops: bool = False, is_kept: bool = False) -> ClientConnection:
    """A connection of a server that waits for no time, to a job in this state."""
    draining = asyncio.Event()
    if stops:
        draining.set()

    async def get(tenant_id: str, job_id: str) -> Job:
        assert (tenant_id, job_id) == ("t", "job_1")
        return now

    runtime = stand_in(draining=draining, settings=stand_in(sync_timeout_s=0), reader=stand_in(get=get))
    return ClientConnection(runtime, now, is_kept=is_kept)


def request(*, leaves: bool = False) -> Request:
    async def receive() -> Any:
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def test_a_caller_gets_the_job_that_has_ended() -> None:
    assert await connection(ended("x")).wait(request()) == ended("x")


async def test_a_caller_that_waited_too_long_gets_the_id_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Draining) as stopping:
        await connection(WAITING, stops=True).wait(request())
    assert stopping.value.job_id == "job_1"

    async def at_once(_runtime: Any, job: Job, timeout_s: float) -> Job:
        assert timeout_s == 0
        return job

    monkeypatch.setattr(synchronous, "wait_until_ended", at_once)
    with pytest.raises(SyncTimeout) as late:
        await connection(WAITING).wait(request())
    assert ("/v1/jobs/job_1" in late.value.message, late.value.job_id) == (True, "job_1")


@pytest.mark.parametrize("is_kept", [False, True])
async def test_the_job_of_a_caller_that_left_is_cancelled_later_unless_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    cancelled: list[tuple[str, float]] = []

    async def never(*_: Any) -> Job:
        await asyncio.Event().wait()
        raise AssertionError

    async def abandon(_runtime: Any, job: Job, *, after_s: float) -> None:
        cancelled.append((job.id, after_s))

    monkeypatch.setattr(synchronous, "wait_until_ended", never)
    monkeypatch.setattr(synchronous, "abandon", abandon)
    assert await connection(WAITING, is_kept=is_kept).wait(request(leaves=True)) is None
    assert cancelled == ([] if is_kept else [("job_1", RETRY_GRACE_S)])
