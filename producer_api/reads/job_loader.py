"""Reading jobs from the event loop: callers who ask while a read runs are served by the next one, all in one query.

Polls, long polls and streams all come here, so a thousand waiting clients of any number of tenants cost a few queries
a second. It is the wave of ``store.db.group_commit`` for callers that are coroutines: one thread hop for all of them.
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterable

from starlette.concurrency import run_in_threadpool

from producer_api.reads.placeholder_restore import restored
from store.db.database import Database
from store.errors import HeadraceError, NotFound
from store.jobs import jobs
from store.jobs.jobs import Job, TenantAndId

MOST = 500
"""Jobs that one query reads. If more are asked for, tenants take turns, so that one with many delays no other."""

PACE_S = 0.02
"""Reads begin at least this far apart: what a caller waits at most for others to share its query."""

_ID = re.compile(r"[!-~]{1,128}")

_Futures = list[asyncio.Future[Job]]


class JobReader:
    """Combines concurrent reads of jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        # By tenant and job id, the tenants in the order of their turns.
        self._asked: dict[str, dict[str, _Futures]] = {}
        self._running: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def get(self, tenant_id: str, job_id: str) -> Job:
        """Return the job as it is now; raise NotFound if this tenant has none by that id, Gone if it had."""
        if _ID.fullmatch(job_id) is None:
            # No id at all, and one that Postgres refuses as a text would fail the query of all who share it.
            raise NotFound(f"no job {job_id[:64]}")
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(tenant_id, {}).setdefault(job_id, []).append(future)
        if self._running is None:
            self._running = asyncio.create_task(self._read_all())
        return await future

    async def _read_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._asked:
                await asyncio.sleep(self._next_at - loop.time())
                self._next_at = loop.time() + PACE_S
                await self._read(self._take())
        finally:
            self._running = None

    def _take(self) -> dict[TenantAndId, _Futures]:
        """Take a query's worth of reads, one of each tenant in turn; who has more goes to the end of the line."""
        turns = deque(self._asked)
        taken: dict[TenantAndId, _Futures] = {}
        while turns and len(taken) < MOST:
            tenant_id = turns.popleft()
            waiting = self._asked.pop(tenant_id)
            job_id = next(iter(waiting))
            taken[tenant_id, job_id] = waiting.pop(job_id)
            if waiting:
                self._asked[tenant_id] = waiting
                turns.append(tenant_id)
        return taken

    async def _read(self, asked: dict[TenantAndId, _Futures]) -> None:
        try:
            found = await run_in_threadpool(self._find, list(asked))
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked, who get it raised
            found = dict.fromkeys(asked, error)
        for pair, futures in asked.items():
            _settle(futures, found[pair])

    def _find(self, pairs: list[TenantAndId]) -> dict[TenantAndId, Job | Exception]:
        return {pair: _restored(job) for pair, job in jobs.get_each(self._db, pairs).items()}


def _restored(found: Job | HeadraceError) -> Job | Exception:
    if isinstance(found, HeadraceError):
        return found
    try:
        return restored(found)
    except Exception as error:  # noqa: BLE001 - of this job alone, and not of the others in its wave
        return error


def _settle(futures: Iterable[asyncio.Future[Job]], outcome: Job | Exception) -> None:
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
