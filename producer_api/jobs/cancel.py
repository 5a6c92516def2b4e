"""Cancels a job: a transaction in Postgres, then a Redis message to the worker and the streams.

Without Redis the worker sees the cancel at its next lease renewal, and streams at their next read from Postgres.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from starlette.concurrency import run_in_threadpool

from headrace.producer_api.runtime import Runtime
from headrace.store.errors import Conflict, HeadraceError, NotFound, Unavailable
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import FLOW_TASK, JobState
from headrace.store.streams.stream_log import publish_cancel

RETRY_GRACE_S = 1.5
"""The official client retries an unanswered request after 0.5 s, and once more after 1 s."""

_log = structlog.get_logger("headrace.producer_api")


def cancel(runtime: Runtime, tenant_id: str, job_id: str) -> Job:
    """Cancel the job or ask its worker to cancel it. Raises NotFound, Conflict (it has ended), Unavailable. Blocks."""
    job = jobs.request_cancel(runtime.db, tenant_id, job_id)
    _announce(runtime, job)
    return job


def announce_cancelled(runtime: Runtime, running: Sequence[str], ended: Sequence[str]) -> None:
    """Notify the workers of running jobs and the streams of ended ones. Without Redis both notice later. Blocks."""
    if runtime.redis_breaker.is_away:
        return
    try:
        if ended:
            runtime.frames.nudge(ended)
        for job_id in running:
            publish_cancel(runtime.redis, job_id)
    except Unavailable:
        runtime.redis_breaker.failed()


def _announce(runtime: Runtime, job: Job) -> None:
    if job.task == FLOW_TASK:
        steps = jobs.list_steps(runtime.db, job.tenant_id, job.id)
        running = [step.id for step in steps if step.state is JobState.RUNNING]
        ended = [one.id for one in (job, *steps) if one.state.is_terminal]
        announce_cancelled(runtime, running, ended)
    elif job.state.is_terminal:
        announce_cancelled(runtime, [], [job.id])
    else:
        announce_cancelled(runtime, [job.id], [])


def _cancel_unless_awaited(runtime: Runtime, job: Job) -> None:
    if (cancelled := jobs.leave(runtime.db, job.tenant_id, job.id)) is not None:
        _announce(runtime, cancelled)


async def abandon(runtime: Runtime, job: Job, *, after_s: float = 0.0) -> None:
    """Cancel the job of a disconnected client, unless another client waits for it. An ended job is not an error.

    ``after_s``: first wait this long, so that the client can retry. A drain does not wait.
    """
    if after_s:
        with suppress(TimeoutError):
            await asyncio.wait_for(runtime.draining.wait(), after_s)
    try:
        await run_in_threadpool(_cancel_unless_awaited, runtime, job)
    except (Conflict, NotFound):
        return
    except HeadraceError as error:
        _log.warning("abandoned_job_not_cancelled", job_id=job.id, reason=error.message)
