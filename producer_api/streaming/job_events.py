"""One job's life as events for a reader who may come late, or come back: exactly the events after the reader's cursor.

While the job lives, deltas come from the hub; its states, and everything once it has ended, come from Postgres alone.
Ids are cursors, how many deltas the reader has and as of which attempt. So a reader that was cut off at any of them and
comes back gets the rest, byte for byte:

    queued 0-0 │ started 1-0 │ text 1-1 … 1-7 │ worker lost, the next one goes on │ text 2-8 2-9 │ ended 2-10
                                              │ it goes on after 5 │ restarted 2-5 │ text 2-6 2-7 │ ended 2-8

A new attempt's text follows an older one's only where the new one says that it kept what the reader has; otherwise
``Restarted`` says how much of it counts. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import chain

from starlette.concurrency import run_in_threadpool

from producer_api.reads.placeholder_restore import restorer_of
from producer_api.runtime import Runtime
from producer_api.server.errors import Draining
from store.errors import InvalidRequest, Unavailable
from store.jobs import jobs
from store.jobs.jobs import Job
from store.payloads.logprobs import Logprobs
from store.schema.job_states import JobState
from store.streams.checkpoints import Lineage, num_kept
from store.streams.stream_log import Cursor, Frame

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
    """The first attempt that this reader sees began."""

    cursor: Cursor
    attempt: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """Another attempt kept only the first ``kept`` of the deltas that the reader has.

    Their text is ``text``, and ``logprobs`` those of their tokens if the job asks.
    """

    cursor: Cursor
    attempt: int
    kept: int
    text: str
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of the answer, with the logprobs of its tokens if the job asks."""

    cursor: Cursor
    text: str
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The job's terminal state; nothing follows."""

    cursor: Cursor
    job: Job


Event = Queued | Started | Restarted | TextPiece | Ended
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
    """One reader: the job as last seen, and how many deltas the reader has as of which attempt."""

    def __init__(self, runtime: Runtime, job: Job, after: Cursor | None) -> None:
        self._runtime = runtime
        self._job = job
        self._is_new = after is None
        self._at = after or Cursor()
        self._seen_at = time.monotonic()
        self._restorer = restorer_of(job)

    async def events(self) -> Events:
        if self._is_new:
            yield Queued(self._at, self._job)
        for event in self._enter():
            yield event
        while not self._job.state.is_terminal:
            async with aclosing(self._live()) as live:
                async for happened in live:
                    yield happened
        async with aclosing(self._rest()) as rest:
            async for happened in rest:
                yield happened

    def _enter(self) -> Iterator[Event]:
        """Step into the attempt that the job row names, if the reader has been in none."""
        job = self._job
        # A queued job's last attempt is over, and one that was handed back uncharged may have none.
        if self._at.epoch == 0 < job.epoch and job.state is not JobState.QUEUED and job.attempt > 0:
            self._at = Cursor(job.epoch, 0)
            yield Started(self._at, job.attempt)

    async def _live(self) -> Events:
        """Yield events until the job row says that it has ended, or the hub says that it should have."""
        async with aclosing(self._runtime.hub.follow(self._job.id, self._hub_cursor())) as frames:
            async for frame in frames:
                self._check_draining()
                if frame is not None and self._is_next(frame):
                    yield self._piece(frame)
                    continue
                if frame is None or frame.is_end or self._is_unknown(frame.epoch):
                    await self._look()
                    for event in self._enter():
                        yield event
                if self._job.state.is_terminal:
                    return
                if frame is None:
                    yield None
                elif frame.is_end:
                    # Sent after the commit, so this is Postgres being away for a moment.
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    return
                else:
                    for event in self._take(frame):
                        yield event

    def _is_unknown(self, epoch: int) -> bool:
        """True if only the job row says which attempt an epoch is.

        The first epoch is the first attempt: nobody waits for a row, which may be a moment old, to read its first text.
        """
        return epoch > max(self._at.epoch, 1)

    def _is_next(self, frame: Frame) -> bool:
        """True for a delta that just follows what the reader has, as nearly all do."""
        at = self._at
        return (
            frame.seq == at.seq + 1
            and frame.text is not None
            and frame.epoch == at.epoch
            and at.epoch >= self._first_epoch
        )

    @property
    def _first_epoch(self) -> int:
        """The oldest attempt that is not over."""
        return self._job.epoch + (self._job.state is JobState.QUEUED)

    def _hub_cursor(self) -> Cursor:
        """Frames of attempts that are over are of no use to anyone."""
        return max(self._at, Cursor.before(self._first_epoch))

    def _take(self, frame: Frame) -> Iterator[Event]:
        # The row may be older than what the reader has, where Postgres could not be read.
        if frame.epoch < max(self._first_epoch, self._at.epoch):
            return
        if frame.checkpoint is not None:
            start = frame.checkpoint
            yield from self._move(frame.epoch, start.lineage, start.deltas, start.logprobs)
        elif frame.epoch > self._at.epoch and frame.seq == 1:
            yield from self._move(frame.epoch, ((frame.epoch, 0),), [frame.text or ""], [frame.logprobs])
        elif self._is_next(frame):
            yield self._piece(frame)

    def _piece(self, frame: Frame) -> TextPiece:
        self._at = frame.cursor
        return TextPiece(self._at, self._put_back(frame.text or ""), frame.logprobs)

    def _move(
        self, epoch: int, lineage: Lineage, deltas: Sequence[str], logprobs: Sequence[Logprobs] = ()
    ) -> Iterator[Event]:
        """Bring the reader to the end of what an attempt has, from wherever it is."""
        if self._at.epoch == 0:
            # Text came, while Postgres is away and still says nothing of an attempt.
            self._at = Cursor(epoch, 0)
            yield Started(self._at, max(1, self._job.attempt))
        kept = num_kept(lineage, self._at.epoch, self._at.seq)
        is_less = kept < self._at.seq
        self._at = Cursor(epoch, kept)
        if is_less:
            known = tuple(chain.from_iterable(logprobs[:kept]))
            yield Restarted(self._at, self._job.attempt, kept, self._put_back("".join(deltas[:kept])), known)
        for seq, text in enumerate(deltas[kept:], kept + 1):
            self._at = Cursor(epoch, seq)
            yield TextPiece(self._at, self._put_back(text), logprobs[seq - 1] if logprobs else ())

    def _put_back(self, text: str) -> str:
        return text if self._restorer is None else self._restorer.text(text)

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
        job = self._job
        is_elsewhere = self._at.epoch < job.epoch
        if job.num_deltas and (is_elsewhere or self._at.seq < job.num_deltas):
            stored = await run_in_threadpool(jobs.stored_deltas, self._runtime.db, job.tenant_id, job.id)
            if stored is not None:
                for event in self._move(stored.epoch, stored.lineage, stored.deltas, stored.logprobs):
                    yield event
        elif is_elsewhere and job.output is not None:
            # The attempt that ended it said nothing at all.
            for event in self._move(job.epoch, ((job.epoch, 0),), ()):
                yield event
        # A lost attempt may have sent more than was stored; the last id is still the highest.
        yield Ended(max(Cursor(job.epoch, job.num_deltas + 1), Cursor(self._at.epoch, self._at.seq + 1)), job)


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
