"""Reading jobs from the event loop: whoever asks while a read is running is served by the next one, all in one query.

Polls, long polls and streams all come here, so a thousand waiting clients cost a few queries a second. It is the wave
of ``store.waves`` for callers that are coroutines: one thread hop for everybody.
"""

import asyncio
from collections import defaultdict

from starlette.concurrency import run_in_threadpool

from producer_api.restoring import restored
from store import jobs
from store.db import Database
from store.errors import HeadraceError
from store.jobs import Job

_MOST = 500

PACE_S = 0.02
"""Reads begin at least this far apart: what a caller waits at most for others to share its query."""

_Asked = dict[str, list[asyncio.Future[Job]]]


class JobReader:
    """Combines concurrent reads of jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._asked: dict[str, _Asked] = {}
        self._running: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def get(self, tenant_id: str, job_id: str) -> Job:
        """Return the job as it is now; raise NotFound if this tenant has none by that id, Gone if it had."""
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(tenant_id, defaultdict(list))[job_id].append(future)
        if self._running is None:
            self._running = asyncio.create_task(self._read_all())
        return await future

    async def _read_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._asked:
                await asyncio.sleep(self._next_at - loop.time())
                self._next_at = loop.time() + PACE_S
                tenant_id = next(iter(self._asked))
                await self._read(tenant_id, self._take(tenant_id))
        finally:
            self._running = None

    def _take(self, tenant_id: str) -> _Asked:
        """Take a query's worth of one tenant's reads; the rest goes to the end of the line."""
        waiting = self._asked.pop(tenant_id)
        taken = {job_id: waiting.pop(job_id) for job_id in list(waiting)[:_MOST]}
        if waiting:
            self._asked[tenant_id] = waiting
        return taken

    async def _read(self, tenant_id: str, asked: _Asked) -> None:
        try:
            found = await run_in_threadpool(self._find, tenant_id, list(asked))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who asked
            for job_id in asked:
                _settle(asked[job_id], error)
            return
        for job_id, futures in asked.items():
            _settle(futures, found[job_id])

    def _find(self, tenant_id: str, ids: list[str]) -> dict[str, Job | HeadraceError]:
        found = {job.id: restored(job) for job in jobs.get_many(self._db, tenant_id, ids)}
        return {job_id: found.get(job_id) or jobs.why_missing(self._db, tenant_id, job_id) for job_id in ids}


def _settle(futures: list[asyncio.Future[Job]], outcome: Job | Exception) -> None:
    for future in futures:
        if future.done():
            continue
        if isinstance(outcome, Job):
            future.set_result(outcome)
        else:
            future.set_exception(_copy(outcome))


def _copy(error: Exception) -> Exception:
    """Return an instance of its own for each waiter: raising one object in many tasks would chain their tracebacks."""
    if isinstance(error, HeadraceError):
        return type(error)(error.message, code=error.code)
    return error
