"""One job's life as events for a reader who may come late, or come back: exactly the events after the reader's cursor.

While the job lives, deltas come from the hub; its states, and everything once it has ended, come from Postgres alone.
Ids are cursors, so a reader that was cut off at any of them and comes back gets the rest, byte for byte:

    queued 0-0 │ started 1-0 │ text 1-1 … 1-7 │ worker lost │ started(again) 2-0 │ text 2-1 … 2-9 │ ended 2-10

Two attempts are never glued: ``Started.again`` tells the reader to drop what it has. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from producer_api.errors import Draining
from producer_api.runtime import Runtime
from store import jobs
from store.errors import InvalidRequest, Unavailable
from store.jobs import Job
from store.states import JobState
from store.streams import Cursor, Frame

# Postgres may be away for this long before a reader is cut off; text goes on meanwhile.
_PATIENCE_S = 10.0
_LOOK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Queued:
    """The job was accepted."""

    cursor: Cursor
    job: Job


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt began. ``again``: an earlier one's events were sent, and its text is void."""

    cursor: Cursor
    attempt: int
    again: bool


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of the answer."""

    cursor: Cursor
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The job's terminal state; nothing follows."""

    cursor: Cursor
    job: Job


Event = Queued | Started | TextPiece | Ended
Events = AsyncGenerator[Event | None, None]


def has_everything(job: Job, after: Cursor | None) -> bool:
    """True if the cursor is the one of the job's terminal event.

    Without stored deltas that id may be a lost attempt's first delta as well; then the event is rather sent twice.
    """
    return job.state.is_terminal and job.num_deltas > 0 and after == Cursor(job.epoch, job.num_deltas + 1)


def follow(runtime: Runtime, job: Job, after: Cursor | None = None) -> Events:
    """Yield the job's events after the cursor; None at least once a second while nothing happens.

    Ends after ``Ended`` and not otherwise: raises Draining when this process stops, Unavailable when Postgres stays
    away. Raises InvalidRequest at once for a cursor that no event of this job has.
    """
    if after is not None and after.epoch > job.epoch:
        raise InvalidRequest(f"{after} is not an event id of this job", param="Last-Event-ID")
    return _Reader(runtime, job, after).events()


class _Reader:
    """One reader: the job as last seen and the cursor of the last event that the reader has."""

    def __init__(self, runtime: Runtime, job: Job, after: Cursor | None) -> None:
        self._runtime = runtime
        self._job = job
        self._at = after
        self._seen_at = time.monotonic()

    async def events(self) -> Events:
        if self._at is None:
            self._at = Cursor()
            yield Queued(self._at, self._job)
        for started in self._enter():
            yield started
        while not self._job.state.is_terminal:
            async with aclosing(self._live()) as live:
                async for event in live:
                    yield event
        async with aclosing(self._rest()) as rest:
            async for event in rest:
                yield event

    def _enter(self) -> Iterator[Started]:
        """Step into the attempt that the job row names, if the reader has not been there."""
        job, at = self._job, self._at or Cursor()
        # A queued job's last attempt is over, and one that was handed back uncharged may have none.
        if job.epoch > at.epoch and job.state is not JobState.QUEUED and job.attempt > 0:
            self._at = Cursor(job.epoch, 0)
            yield Started(self._at, job.attempt, again=at.epoch > 0)

    async def _live(self) -> Events:
        """Yield events until the job row says that it has ended, or the hub says that it should have."""
        async with aclosing(self._runtime.hub.follow(self._job.id, self._hub_cursor())) as frames:
            async for frame in frames:
                self._check_draining()
                if frame is None or self._is_news(frame):
                    await self._look()
                    for started in self._enter():
                        yield started
                if self._job.state.is_terminal:
                    return
                if frame is None:
                    yield None
                elif frame.is_end:
                    # Sent after the commit, so this is Postgres being away for a moment.
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    return
                elif self._at is not None and frame.epoch == self._at.epoch:
                    self._at = frame.cursor
                    yield TextPiece(frame.cursor, frame.text or "")

    def _hub_cursor(self) -> Cursor:
        """Frames of attempts that are over are of no use to anyone."""
        over = self._job.state is JobState.QUEUED
        return max(self._at or Cursor(), Cursor(self._job.epoch + over, 0))

    def _is_news(self, frame: Frame) -> bool:
        return frame.is_end or self._at is None or frame.epoch > self._at.epoch

    async def _look(self) -> None:
        """Read the job row again; for a while it does not matter if that fails."""
        try:
            self._job = await self._runtime.reader.get(self._job.tenant_id, self._job.id)
            self._seen_at = time.monotonic()
        except Unavailable:
            if time.monotonic() - self._seen_at > _PATIENCE_S:
                raise

    def _check_draining(self) -> None:
        if self._runtime.draining.is_set():
            raise Draining("this server is stopping: connect again")

    async def _rest(self) -> Events:
        """Yield what the reader lacks of a job that has ended, from Postgres."""
        job, at = self._job, self._at or Cursor()
        if job.num_deltas and at.epoch == job.epoch:
            stored = await run_in_threadpool(jobs.stored_deltas, self._runtime.db, job.tenant_id, job.id)
            texts = stored.deltas if stored is not None and stored.epoch == at.epoch else []
            for seq, text in enumerate(texts[at.seq :], at.seq + 1):
                at = Cursor(job.epoch, seq)
                yield TextPiece(at, text)
        # A lost attempt may have sent more than was stored; the last id is still the highest.
        yield Ended(max(Cursor(job.epoch, job.num_deltas + 1), Cursor(at.epoch, at.seq + 1)), job)


async def wait_until_ended(runtime: Runtime, job: Job, timeout_s: float) -> Job:
    """Return the job once it has ended, or as it is after ``timeout_s`` or when this process stops."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not (job.state.is_terminal or runtime.draining.is_set()):
                job = await _until_news(runtime, job)
    return job if job.state.is_terminal else await runtime.reader.get(job.tenant_id, job.id)


async def _until_news(runtime: Runtime, job: Job) -> Job:
    """Follow the job to its end or to the moment when this process stops, and return its row."""
    async with aclosing(runtime.hub.follow(job.id)) as frames:
        async for frame in frames:
            if frame is None or frame.is_end:
                job = await runtime.reader.get(job.tenant_id, job.id)
                if job.state.is_terminal or runtime.draining.is_set():
                    return job
    # The end frame came and Postgres does not show it: never so, unless it was promoted from a lagging standby.
    await asyncio.sleep(_LOOK_AGAIN_S)
    return job
