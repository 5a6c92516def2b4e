"""The events of one job for a client that may connect late or reconnect: exactly the events after its cursor.

While the job runs, text deltas come from the hub. Job states, and all events of an ended job, come from Postgres.
An event id is a cursor, ``epoch-seq``: the attempt, and the number of deltas received. A client that reconnects with
any event id gets the rest, byte for byte:

    queued 0-0 │ started 1-0 │ text 1-1 … 1-7 │ worker lost, attempt 2 kept all 7 │ text 2-8 2-9 │ ended 2-10
                                              │ attempt 2 kept 5  │ restarted 2-5 │ text 2-6 2-7 │ ended 2-8

Of a job of several steps the ids also count the events of its steps, ``epoch-seq.steps``. Those come from Postgres, in
the order in which they were committed, and between the text of the answer.

A new attempt continues the old text only if it kept all deltas that the client has. Otherwise ``Restarted`` gives the
number of deltas that are still valid. No HTTP.

Where a format has no event for this, the deduplicators remove from the stream what a second attempt repeats.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from starlette.concurrency import run_in_threadpool

from headrace.producer_api.reads.job_loader import restorer_of
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import Draining
from headrace.prompts.detokenizer import spell
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job, JobEvent
from headrace.store.registry.models import queue_name
from headrace.store.schema.job_states import FLOW_TASK, JobState
from headrace.store.streams.checkpoints import Checkpoint, ChoiceMark, Lineage, LogprobRow, Logprobs, Marks, num_kept
from headrace.store.streams.stream_log import Frame, Progress, StreamCursor, read_progress
from headrace.store.tasks.registry import TASKS


class Diverged(Exception):
    """A new attempt's text does not start with the text that was already sent."""


class TextDeduplicator:
    """Joins the texts of several attempts of a job into one stream without repetition.

    OpenAI's stream cannot retract text. A greedy or seeded attempt generates the same text again; the part that was
    already sent is dropped. ``Diverged`` is raised at the first difference, so different texts are never joined.
    """

    def __init__(self) -> None:
        self._sent = ""
        self._again = ""
        self._is_repeating = False

    def restart(self, kept: str) -> str:
        """Start a new attempt that kept the text ``kept``; return its part not yet sent. Raises Diverged."""
        self._again = ""
        self._is_repeating = bool(self._sent)
        return self.add(kept)

    def add(self, text: str) -> str:
        """Add the attempt's next text; return its part not yet sent. Raises Diverged."""
        if not self._is_repeating:
            self._sent += text
            return text
        self._again += text
        shared = min(len(self._again), len(self._sent))
        if self._again[:shared] != self._sent[:shared]:
            raise Diverged
        if len(self._again) < len(self._sent):
            return ""
        new = self._again[len(self._sent) :]
        self._sent, self._is_repeating = self._again, False
        return new

    def finish(self) -> None:
        """End the attempt. Raises Diverged if its text is shorter than the text already sent."""
        if self._is_repeating and self._again != self._sent:
            raise Diverged


class TokenDeduplicator:
    """Drops the logprobs that were already sent when a later attempt repeats its tokens."""

    def __init__(self) -> None:
        self._num_sent = 0
        self._at = 0

    def restart(self, kept: Logprobs) -> Logprobs:
        """Start a new attempt that kept these tokens; return those not yet sent."""
        self._at = 0
        return self.add(kept)

    def add(self, logprobs: Logprobs) -> Logprobs:
        """Add the attempt's next tokens; return those not yet sent."""
        new = logprobs[max(0, self._num_sent - self._at) :]
        self._at += len(logprobs)
        self._num_sent = max(self._num_sent, self._at)
        return new


# Longest Postgres outage before the stream ends with an error. Text still flows meanwhile.
_PATIENCE_S = 10.0
RELOAD_DELAY_S = 0.25


@dataclass(frozen=True, slots=True)
class Queued:
    """The job was accepted."""

    cursor: StreamCursor
    job: Job


@dataclass(frozen=True, slots=True)
class Started:
    """The first attempt that this client sees has started."""

    cursor: StreamCursor
    attempt: int


@dataclass(frozen=True, slots=True)
class KeptText:
    """The text of kept deltas, and the logprobs of their tokens if requested."""

    text: str = ""
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class Restarted:
    """A new attempt kept only the first ``kept`` of the deltas that the client has.

    ``text`` is the text of these deltas, ``logprobs`` those of their tokens if requested. If the job has several
    choices, they are those of the first one, and ``choices`` has all that kept any.
    """

    cursor: StreamCursor
    attempt: int
    kept: int
    text: str
    logprobs: Logprobs = ()
    choices: Mapping[int, KeptText] = field(default_factory=dict)

    def kept_of(self, choice: int) -> KeptText:
        """Return what was kept of a choice."""
        return self.choices.get(choice, KeptText()) if choice else KeptText(self.text, self.logprobs)


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of the answer, with the logprobs of its tokens if requested.

    ``mark``: the choice, if the job has several; the last piece of a choice may be empty.
    """

    cursor: StreamCursor
    text: str
    logprobs: Logprobs = ()
    mark: ChoiceMark | None = None

    @property
    def choice(self) -> int:
        """The number of the choice."""
        return 0 if self.mark is None else self.mark.choice


@dataclass(frozen=True, slots=True)
class Progressed:
    """The attempt has told how far it is. It is in no log, so its cursor is that of the event before."""

    cursor: StreamCursor
    progress: Progress


@dataclass(frozen=True, slots=True)
class StepHappened:
    """A step has begun an attempt, has ended, waits for an approval or no longer waits: an event of the job's timeline
    (``step_started``, ``step_finished``, ``approval_requested``, ``approval_decided``).
    """

    cursor: StreamCursor
    event: JobEvent


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended. Always the last event."""

    cursor: StreamCursor
    job: Job


Event = Queued | Started | Restarted | TextPiece | Progressed | StepHappened | Ended
Events = AsyncGenerator[Event | None, None]


def has_everything(job: Job, after: StreamCursor | None) -> bool:
    """True if the cursor is that of the job's terminal event.

    Without stored deltas the same id can be the first delta of a lost attempt; then the event is sent again.
    """
    return job.state.is_terminal and job.num_deltas > 0 and after == StreamCursor(job.epoch, job.num_deltas + 1)


def follow(runtime: Runtime, job: Job, after: StreamCursor | None = None) -> Events:
    """Yield the job's events after the cursor; None at least once per second without events.

    Ends only after ``Ended``. Raises Draining when this process stops, Unavailable when Postgres is down for too long.
    Raises InvalidRequest immediately for a cursor of no event of this job.
    """
    # While it gets the text of another job, its events have the numbers of that job.
    if after is not None and after.epoch > job.epoch and job.streamed_as == job.id:
        raise InvalidRequest(f"{after} is not an event id of this job", param="Last-Event-ID")
    return _JobEventReader(runtime, job, after).events()


async def progress_of(runtime: Runtime, job: Job) -> Progress | None:
    """Return how far a running job is; None if its task does not tell, has told nothing, or without Redis."""
    task = TASKS.get(job.task)
    if task is None or not task.has_progress or job.state is not JobState.RUNNING:
        return None
    try:
        return await run_in_threadpool(read_progress, runtime.redis, job.id, job.epoch, runtime.db.seal)
    except Unavailable:
        return None


class _JobEventReader:
    """State of one subscription: the last job row read, and the client's cursor."""

    def __init__(self, runtime: Runtime, job: Job, after: StreamCursor | None) -> None:
        self._runtime = runtime
        self._job = job
        self._is_new = after is None
        self._at = after or StreamCursor()
        self._seen_at = time.monotonic()
        self._restorer = restorer_of(job)
        self._num_steps = self._at.steps
        self._step_news: list[JobEvent] = []

    async def events(self) -> Events:
        """Yield the events. Those of a job of several steps get the number of its steps' events in their cursors."""
        if self._job.task != FLOW_TASK:
            async with aclosing(self._plain_events()) as events:
                async for event in events:
                    yield event
            return
        await self._reload()
        async with aclosing(self._plain_events()) as events:
            async for event in events:
                if isinstance(event, StepHappened):
                    self._num_steps += 1
                if event is None:
                    yield None
                else:
                    yield replace(event, cursor=replace(event.cursor, steps=self._num_steps))

    async def _plain_events(self) -> Events:
        if self._is_new:
            yield Queued(self._at, self._job)
        for event in self._news():
            yield event
        if (told := await progress_of(self._runtime, self._job)) is not None and self._job.epoch == self._at.epoch:
            yield Progressed(self._at, told)
        while not self._job.state.is_terminal:
            async with aclosing(self._live()) as live:
                async for happened in live:
                    yield happened
        async with aclosing(self._rest()) as rest:
            async for happened in rest:
                yield happened

    def _news(self) -> Iterator[Event]:
        """Yield what the row that was read says. The events of steps of an ended job come between its text."""
        yield from self._enter()
        if not self._job.state.is_terminal:
            yield from self._steps()

    def _enter(self) -> Iterator[Event]:
        """Start the attempt of the job row, if the client has seen no attempt yet."""
        job = self._job
        # The last attempt of a queued job is over; a job that was returned uncharged may have no attempt.
        if self._at.epoch == 0 < job.epoch and job.state is not JobState.QUEUED and job.attempt > 0:
            self._at = StreamCursor(job.epoch, 0)
            yield Started(self._at, job.attempt)

    async def _live(self) -> Events:
        """Yield events until the job row is terminal, has another stream, or until the hub's end frame arrives."""
        followed = self._job.streamed_as
        async with aclosing(self._runtime.hub.follow(followed, self._hub_cursor())) as frames:
            async for frame in frames:
                self._check_draining()
                if frame is not None and self._is_next(frame):
                    yield self._piece(frame)
                    continue
                if frame is None or self._is_news(frame):
                    await self._reload()
                    for event in self._news():
                        yield event
                if self._job.state.is_terminal or self._job.streamed_as != followed:
                    return
                if frame is None:
                    yield None
                elif frame.is_end:
                    # The end frame is sent after the commit, so Postgres is unavailable for a moment.
                    await asyncio.sleep(RELOAD_DELAY_S)
                    return
                else:
                    for event in self._take(frame):
                        yield event

    def _steps(self, *, until: str | None = None) -> Iterator[Event]:
        """Take the events of steps that were read; with ``until`` those before the end of this step."""
        while self._step_news:
            first = self._step_news[0]
            if until is not None and (first.kind, first.detail.get("job")) == ("step_finished", until):
                return
            yield StepHappened(self._at, self._step_news.pop(0))

    def _is_unknown(self, epoch: int) -> bool:
        """True if the job row must be read to map the epoch to an attempt.

        Epoch 1 is always attempt 1, so the first text does not wait for the job row, which can be a moment old.
        """
        return epoch > max(self._at.epoch, 1)

    def _is_next(self, frame: Frame) -> bool:
        """True for a delta that directly follows the cursor, the usual case."""
        at = self._at
        return (
            frame.seq == at.seq + 1
            and frame.text is not None
            and frame.epoch == at.epoch
            and at.epoch >= self._first_epoch
        )

    @property
    def _first_epoch(self) -> int:
        """Epoch of the oldest attempt that is not over."""
        return self._job.epoch + (self._job.state is JobState.QUEUED)

    def _hub_cursor(self) -> StreamCursor:
        """Where to start reading the hub: frames of attempts that are over are skipped."""
        return max(self._at, StreamCursor.before(self._first_epoch))

    def _is_news(self, frame: Frame) -> bool:
        """True if the job row must be read: the job has ended, or an attempt is not known yet."""
        is_early = frame.progress is not None and frame.epoch > self._at.epoch
        return frame.is_end or is_early or self._is_unknown(frame.epoch)

    def _take(self, frame: Frame) -> Iterator[Event]:
        # The row can be older than the cursor if Postgres was unavailable.
        if frame.epoch < max(self._first_epoch, self._at.epoch):
            return
        if frame.progress is not None:
            if frame.epoch == self._at.epoch:
                yield Progressed(self._at, frame.progress)
        elif frame.checkpoint is not None:
            start = frame.checkpoint
            yield from self._move(frame.epoch, start)
        elif frame.epoch > self._at.epoch and frame.seq == 1:
            marks = () if frame.mark is None else (frame.mark,)
            lineage = ((frame.epoch, 0),)
            yield from self._move(frame.epoch, _known(lineage, [frame.text or ""], [frame.logprobs], marks))
        elif self._is_next(frame):
            yield self._piece(frame)

    def _piece(self, frame: Frame) -> TextPiece:
        self._at = frame.cursor
        return TextPiece(self._at, self._restore(frame.text or ""), frame.logprobs, frame.mark)

    def _move(self, epoch: int, known: Checkpoint) -> Iterator[Event]:
        """Move the client from its cursor to the end of an attempt's deltas."""
        if self._at.epoch == 0:
            # Text arrived while Postgres is unavailable and the row has no attempt yet.
            self._at = StreamCursor(epoch, 0)
            yield Started(self._at, max(1, self._job.attempt))
        kept = num_kept(known.lineage, self._at.epoch, self._at.seq)
        is_less = kept < self._at.seq
        self._at = StreamCursor(epoch, kept)
        if is_less:
            yield self._restarted(kept, known)
        for index in range(kept, known.num_deltas):
            self._at = StreamCursor(epoch, index + 1)
            logprobs = known.logprobs[index] if known.logprobs else ()
            mark = known.marks[index] if known.marks else None
            yield TextPiece(self._at, self._restore(known.deltas[index]), logprobs, mark)

    def _restarted(self, kept: int, known: Checkpoint) -> Restarted:
        """Return the event for a client that loses deltas after the first ``kept``."""
        left = _known((), known.deltas[:kept], known.logprobs[:kept], known.marks[:kept])
        texts = {choice: self._kept(left.of_choice(choice)) for choice in {mark.choice for mark in left.marks} | {0}}
        first = texts[0]
        choices = texts if known.marks else {}
        # A job of several steps has no attempts of its own.
        return Restarted(self._at, max(1, self._job.attempt), kept, first.text, first.logprobs, choices)

    def _kept(self, own: Checkpoint) -> KeptText:
        return KeptText(self._restore("".join(own.deltas)), tuple(chain.from_iterable(own.logprobs)))

    def _restore(self, text: str) -> str:
        return text if self._restorer is None else self._restorer.text(text)

    async def _reload(self) -> None:
        """Read the job row again. Failures are tolerated for ``_PATIENCE_S``."""
        try:
            self._job = await self._runtime.reader.get(self._job.tenant_id, self._job.id)
            if self._job.task == FLOW_TASK:
                # After the row: an ended job has all of them.
                self._step_news = await run_in_threadpool(
                    jobs.step_events, self._runtime.db, self._job.tenant_id, self._job.id, after=self._num_steps
                )
            self._seen_at = time.monotonic()
        except Unavailable:
            if time.monotonic() - self._seen_at > _PATIENCE_S:
                raise

    def _check_draining(self) -> None:
        if self._runtime.draining.is_set():
            raise Draining("this server is stopping: connect again")

    async def _rest(self) -> Events:
        """Yield the remaining events of an ended job from Postgres."""
        job = self._job
        is_elsewhere = self._at.epoch < job.epoch
        for event in self._steps(until=job.answer_id):
            yield event
        if job.num_deltas and (is_elsewhere or self._at.seq < job.num_deltas):
            stored = await run_in_threadpool(jobs.stored_deltas, self._runtime.db, job.tenant_id, job.id)
            if stored is not None:
                known = _known(stored.lineage, stored.deltas, stored.logprobs, stored.marks)
                for event in self._move(stored.epoch, known):
                    yield event
        elif is_elsewhere and job.output is not None:
            # The last attempt generated no text.
            for event in self._move(job.epoch, _known(((job.epoch, 0),))):
                yield event
        for event in self._steps():
            yield event
        # A lost attempt may have sent more deltas than were stored; the last id must still be the highest.
        yield Ended(
            max(StreamCursor(job.epoch, job.num_deltas + 1), StreamCursor(self._at.epoch, self._at.seq + 1)), job
        )


def _known(
    lineage: Lineage, deltas: Sequence[str] = (), logprobs: Sequence[Logprobs] = (), marks: Marks = ()
) -> Checkpoint:
    """Return deltas without their tokens, which no client is shown."""
    return Checkpoint(tuple(deltas), ((),) * len(deltas), lineage, tuple(logprobs), marks)


async def wait_until_ended(runtime: Runtime, job: Job, timeout_s: float) -> Job:
    """Return the job when it has ended, after ``timeout_s``, or when this process stops."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not (job.state.is_terminal or runtime.draining.is_set()):
                job = await _wait_for_change(runtime, job)
    return job if job.state.is_terminal else await runtime.reader.get(job.tenant_id, job.id)


async def _wait_for_change(runtime: Runtime, job: Job) -> Job:
    """Wait until the job ends or this process stops; return its row."""
    async with aclosing(runtime.hub.follow(job.streamed_as)) as frames:
        async for frame in frames:
            if frame is None or frame.is_end:
                job = await runtime.reader.get(job.tenant_id, job.id)
                if job.state.is_terminal or runtime.draining.is_set():
                    return job
    # The end frame arrived but the row is not terminal: possible only after failover to a lagging standby.
    await asyncio.sleep(RELOAD_DELAY_S)
    return job


FormatLogprobs = Callable[[Iterable[LogprobRow]], list[dict[str, Any]]]
"""Converts stored logprobs to OpenAI's entries: token, logprob, bytes, top_logprobs."""


async def logprob_formatter(runtime: Runtime, job: Job) -> FormatLogprobs | None:
    """Return the formatter for the job's model version; None if the job does not request logprobs."""
    if job.payload.get("sampling", {}).get("logprobs") is None:
        return None
    tokenizer = await run_in_threadpool(
        lambda: runtime.catalog.tokenizer(runtime.catalog.resolve(queue_name(job.model, job.model_version)))
    )
    return lambda logprobs: [entry.model_dump() for entry in spell(tokenizer, logprobs)]
