"""Cancelling a job: Postgres decides, then Redis tells the worker and the readers at once.

If Redis is away, the worker learns it with its next lease renewal and the readers at their next look into Postgres.
"""

import structlog
from starlette.concurrency import run_in_threadpool

from producer_api.runtime import Runtime
from store import jobs
from store.errors import Conflict, HeadraceError, NotFound, Unavailable
from store.jobs import Job
from store.streams import publish_cancel

_log = structlog.get_logger("producer_api")


def cancel(runtime: Runtime, tenant_id: str, job_id: str) -> Job:
    """Cancel the job or ask its worker to. Raises NotFound, Conflict (it has ended), Unavailable. Blocks."""
    job = jobs.request_cancel(runtime.db, tenant_id, job_id)
    if not runtime.redis_watch.is_away:
        _tell(runtime, job)
    return job


def _tell(runtime: Runtime, job: Job) -> None:
    try:
        if job.state.is_terminal:
            runtime.frames.nudge([job.id])
        else:
            publish_cancel(runtime.redis, job.id)
    except Unavailable:
        runtime.redis_watch.failed()


async def abandon(runtime: Runtime, job: Job) -> None:
    """Cancel a job whose caller has left; that it has ended meanwhile is as good."""
    try:
        await run_in_threadpool(cancel, runtime, job.tenant_id, job.id)
    except (Conflict, NotFound):
        return
    except HeadraceError as error:
        _log.warning("abandoned_job_not_cancelled", job_id=job.id, reason=error.message)
