"""Reads the live state once a second for all open consoles of this process, and hands what was read to each.

The queues are read for each tenant that has a console open, and once for all keys that see every tenant; everything
else is read once. Without an open console nothing is read.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from headrace.features.console import live_view
from headrace.features.console.live_objects import LiveQueue, LiveState
from headrace.features.console.live_view import Tick
from headrace.producer_api.api_part import ApiWork
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import Draining
from headrace.producer_api.server.sse import StreamAborted
from headrace.store.errors import HeadraceError, Unavailable
from headrace.store.hosts.host_reports import HostReport, read_hosts
from headrace.store.redis import live_workers
from headrace.store.redis.connection import AWAY
from headrace.store.redis.live_workers import HISTORY_S, WorkerSnapshot
from headrace.store.scheduling import backlog, queues
from headrace.store.tenants import tenants

_log = structlog.get_logger("headrace.producer_api")

PERIOD_S = 1.0

Audience = str | None
"""The tenant whose figures a console shows; None: it shows all."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read for one audience, as JSON. ``history_no`` counts the changes of the history."""

    state: bytes
    history: bytes
    history_no: int


class LivePoll(ApiWork):
    """The shared poll. ``follow`` is called on the event loop; the reading runs in a thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._audiences: Counter[Audience] = Counter()
        self._readings: dict[Audience, _Reading] = {}
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ticks: deque[Tick] = deque()
        self._last_tick = "0-0"
        self._history_no = 0

    async def follow(self, audience: Audience) -> AsyncGenerator[bytes]:
        """Yield server-sent events: the history when it has changed, and the state once a second.

        Raises StreamAborted when the process is stopping, or the poll ended by an error: the console connects anew.
        """
        history_no = -1
        async with aclosing(self._watch(audience)) as readings:
            async for reading in readings:
                if reading.history_no != history_no:
                    history_no = reading.history_no
                    yield _event("history", reading.history)
                yield _event("live", reading.state)
        raise StreamAborted

    async def snapshot(self, audience: Audience) -> bytes:
        """Return a LiveSnapshot as JSON. Raises Unavailable when the process is stopping, or the poll ended."""
        async with aclosing(self._watch(audience)) as readings:
            async for reading in readings:
                return b'{"state":%b,"history":%b}' % (reading.state, reading.history)
        if self._runtime.draining.is_set():
            raise Draining("this server is stopping")
        raise Unavailable("the live state could not be read: ask again")

    async def _watch(self, audience: Audience) -> AsyncGenerator[_Reading]:
        """Yield each reading for the audience, at first the last one, until the process stops or the poll ends."""
        self._audiences[audience] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        elif audience not in self._readings:
            self._hurry.set()
        task = self._task
        try:
            while not (self._runtime.draining.is_set() or task.done()):
                changed = self._changed
                if (reading := self._readings.get(audience)) is not None:
                    yield reading
                await changed.wait()
        finally:
            self._audiences[audience] -= 1
            if not self._audiences[audience]:
                del self._audiences[audience]

    async def _run(self) -> None:
        try:
            while self._audiences and not self._runtime.draining.is_set():
                try:
                    self._readings = await run_in_threadpool(self._read, tuple(self._audiences))
                except Exception:  # noqa: BLE001 - the consoles keep what they have, and the next reading may succeed
                    _log.exception("live_not_read")
                self._announce()
                self._hurry.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), PERIOD_S)
        finally:  # However it ends, nobody waits for its next reading.
            self._readings = {}
            self._announce()

    def _announce(self) -> None:
        announced, self._changed = self._changed, asyncio.Event()
        announced.set()

    def _read(self, audiences: Collection[Audience]) -> dict[Audience, _Reading]:
        missing: list[str] = []
        workers = self._read_workers(missing)
        hosts = self._read_hosts(missing)
        read = {audience: self._read_queues(audience, hosts, missing) for audience in audiences}
        now = datetime.now(UTC).timestamp()
        hit_rate = self._runtime.metrics.cache_hit_rate()
        return {
            audience: self._encoded(
                audience,
                live_view.live_state(
                    now,
                    found,
                    live_view.live_workers(workers, audience),
                    missing,
                    hosts=hosts,
                    cache_hit_rate=hit_rate,
                    sees_all=audience is None,
                ),
            )
            for audience, found in read.items()
        }

    def _encoded(self, audience: Audience, state: LiveState) -> _Reading:
        known = self._readings.get(audience)
        if known is not None and known.history_no == self._history_no:
            return _Reading(_json(state), known.history, known.history_no)
        history = live_view.history(self._ticks, audience, state.at)
        return _Reading(_json(state), _json(history), self._history_no)

    def _read_hosts(self, missing: list[str]) -> list[HostReport]:
        try:
            return read_hosts(self._runtime.lists.db)
        except HeadraceError:
            missing.append("postgres")
            return []

    def _read_queues(self, audience: Audience, hosts: Sequence[HostReport], missing: list[str]) -> list[LiveQueue]:
        db, sees_all = self._runtime.lists.db, audience is None
        try:
            found = backlog.read_backlog(db)
            views = queues.view_queues(db, found, tenant_id=audience)
            names = tenants.read_names(db, live_view.largest_tenants(found)) if sees_all else {}
        except HeadraceError:
            missing.append("postgres")
            return []
        return live_view.live_queues(views, found, names, hosts, sees_all=sees_all)

    def _read_workers(self, missing: list[str]) -> list[tuple[WorkerSnapshot, float]]:
        client = self._runtime.redis
        try:
            found = live_workers.read_workers(client)
            new, self._last_tick = live_workers.read_ticks(client, self._last_tick)
        except AWAY:
            missing.append("redis")
            return []
        self._keep(new)
        return found

    def _keep(self, new: list[Tick]) -> None:
        if new:
            self._history_no += 1
            self._ticks.extend(new)
        oldest = datetime.now(UTC).timestamp() - HISTORY_S - live_view.FIRST_TOKENS_OVER_S
        while self._ticks and self._ticks[0][0] < oldest:
            self._ticks.popleft()


def _json(value: BaseModel) -> bytes:
    return value.model_dump_json().encode()


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
