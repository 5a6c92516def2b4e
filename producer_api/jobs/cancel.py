"""Cancelling a job: Postgres decides, then Redis tells the worker and the readers at once.

If Redis is away, the worker learns it with its next lease renewal and the readers at their next look into Postgres.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from starlette.concurrency import run_in_threadpool

from producer_api.runtime import Runtime
from store.errors import Conflict, HeadraceError, NotFound, Unavailable
from store.jobs import jobs
from store.jobs.jobs import Job
from store.streams.stream_log import publish_cancel

ASKS_AGAIN_WITHIN_S = 1.5
"""The official client sends a request whose answer did not come again after half a second, and once more after one."""

_log = structlog.get_logger("producer_api")


def cancel(runtime: Runtime, tenant_id: str, job_id: str) -> Job:
    """Cancel the job or ask its worker to. Raises NotFound, Conflict (it has ended), Unavailable. Blocks."""
    job = jobs.request_cancel(runtime.db, tenant_id, job_id)
    _announce(runtime, job)
    return job


def announce_cancelled(runtime: Runtime, running: Sequence[str], ended: Sequence[str]) -> None:
    """Notify the workers of running jobs and the readers of ended ones. Without Redis both notice it later. Blocks."""
    if runtime.redis_watch.is_away:
        return
    try:
        if ended:
            runtime.frames.nudge(ended)
        for job_id in running:
            publish_cancel(runtime.redis, job_id)
    except Unavailable:
        runtime.redis_watch.failed()


def _announce(runtime: Runtime, job: Job) -> None:
    if job.state.is_terminal:
        announce_cancelled(runtime, [], [job.id])
    else:
        announce_cancelled(runtime, [job.id], [])


def _leave(runtime: Runtime, job: Job) -> None:
    if (cancelled := jobs.leave(runtime.db, job.tenant_id, job.id)) is not None:
        _announce(runtime, cancelled)


async def abandon(runtime: Runtime, job: Job, *, after_s: float = 0.0) -> None:
    """Cancel a job whose caller has left, unless another one waits for it; that it has ended meanwhile is as good.

    ``after_s``: leave him time to ask again, which makes him another. A drain does not wait for that.
    """
    if after_s:
        with suppress(TimeoutError):
            await asyncio.wait_for(runtime.draining.wait(), after_s)
    try:
        await run_in_threadpool(_leave, runtime, job)
    except (Conflict, NotFound):
        return
    except HeadraceError as error:
        _log.warning("abandoned_job_not_cancelled", job_id=job.id, reason=error.message)
