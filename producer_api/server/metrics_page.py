"""The page for Prometheus of an API process: rendered on a thread, at most once a second, for all callers together."""

import asyncio
import time

import structlog
from starlette.concurrency import run_in_threadpool

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.scheduling.backlog import TenantBacklog, read_backlog

_log = structlog.get_logger("headrace.producer_api")

_RENDER_AGAIN_AFTER_S = 1.0
_READ_S = 2.0


class MetricsPage:
    """Renders the page, and keeps it for a second. Used on the event loop alone."""

    def __init__(self, db: Database, metrics: ApiMetrics) -> None:
        self._db = db
        self._metrics = metrics
        self._rendering: asyncio.Task[bytes] | None = None
        self._render_after = 0.0

    async def read(self) -> bytes:
        """Return the page, at most a second old; queue depths are left out while Postgres is away or slow."""
        now = time.monotonic()
        if self._rendering is None or (self._rendering.done() and now >= self._render_after):
            self._render_after = now + _RENDER_AGAIN_AFTER_S
            self._rendering = asyncio.create_task(self._render())
        # A caller that leaves does not end the rendering for the others.
        return await asyncio.shield(self._rendering)

    async def _render(self) -> bytes:
        return await run_in_threadpool(self._metrics.render, await self._shares())

    async def _shares(self) -> tuple[TenantBacklog, ...] | None:
        """Return the backlog; None if Postgres does not give it within ``_READ_S``, so that the other series stay."""
        reading = asyncio.ensure_future(run_in_threadpool(self._read_shares))
        done, _ = await asyncio.wait([reading], timeout=_READ_S)
        return reading.result() if done else None

    def _read_shares(self) -> tuple[TenantBacklog, ...] | None:
        try:
            return read_backlog(self._db).computed
        except Unavailable as error:
            _log.warning("queue_depths_unknown", reason=error.message)
            return None
