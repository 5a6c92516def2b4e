"""Streams a response's events to one client as server-sent events, during generation and afterwards.

All events are rebuilt for each client; those up to its ``sequence_number`` are skipped.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool

from headrace.features.responses.file_searches import searched_step
from headrace.features.responses.response_events import Event as ResponseEvent
from headrace.features.responses.response_events import ResponseEventBuilder
from headrace.features.responses.response_jobs import read_found
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import JobUnanswered
from headrace.producer_api.server.sse import LINE_PING, Heartbeat, event
from headrace.producer_api.streaming.job_events import (
    Diverged,
    Ended,
    Event,
    FormatLogprobs,
    Restarted,
    Started,
    StepHappened,
    TextDeduplicator,
    TextPiece,
    TokenDeduplicator,
    follow,
    logprob_formatter,
)
from headrace.producer_api.streaming.turns import CallEnded, TurnEnded, TurnEvent, follow_turns, has_turns
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.retrieval import SEARCH_STEP
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Logprobs

BEFORE_ALL = -1


async def read_events(
    runtime: Runtime, job: Job, row: StoredResponse, after: int = BEFORE_ALL, *, with_found: bool = False
) -> AsyncGenerator[bytes]:
    """Yield the events after number ``after``, and pings. Ends only after the terminal event.

    ``with_found``: a search in files shows what it found. Raises JobUnanswered if a second attempt generates a
    different text, Draining and Unavailable as ``follow``.
    """
    encoder = _EventEncoder(job, row, after, await logprob_formatter(runtime, job))
    if opening := encoder.opening():
        yield opening
    heartbeat = Heartbeat(runtime.settings.stream_ping_s)
    followed = (follow_turns if has_turns(job) else follow)(runtime, job)
    async with aclosing(followed) as events:
        async for happened in events:
            if happened is None:
                if heartbeat.is_due():
                    yield LINE_PING
                continue
            if with_found and encoder.ends_search(happened):
                with_found = False
                encoder.set_found(await run_in_threadpool(read_found, runtime.db, job))
            if encoded := encoder.encode(happened):
                heartbeat.beat()
                yield encoded


class _EventEncoder:
    """Encodes job events as response events for one client, and skips those that it already has."""

    def __init__(self, job: Job, row: StoredResponse, after: int, format_logprobs: FormatLogprobs | None) -> None:
        self._job = job
        self._after = after
        self._format_logprobs = format_logprobs
        self._builder = ResponseEventBuilder(job, row)
        self._text = TextDeduplicator()
        self._tokens = TokenDeduplicator()
        name = searched_step(job)
        self._search = None if name is None else SEARCH_STEP.format(name)

    def opening(self) -> bytes:
        return self._encode(self._builder.opening())

    def ends_search(self, happened: Event | TurnEvent) -> bool:
        """Return True if the search in files is over once this has happened, or never was."""
        if isinstance(happened, StepHappened):
            return self._is_end_of_search(happened)
        return isinstance(happened, Restarted | TextPiece | Ended)

    def _is_end_of_search(self, happened: StepHappened) -> bool:
        detail = happened.event.detail
        is_done = happened.event.kind == "step_finished" and detail.get("state") == JobState.SUCCEEDED
        return is_done and detail.get("step") == self._search

    def set_found(self, passages: Sequence[Mapping[str, Any]] | None) -> None:
        """Show what the search found in the events after this."""
        if passages is not None:
            self._builder.set_found(passages)

    def encode(self, happened: Event | TurnEvent) -> bytes:
        """Return the events that the client does not have yet. Raises JobUnanswered."""
        match happened:
            case TurnEnded() | CallEnded():
                return self._turn(happened)
            case Started():
                return self._encode(self._builder.started())
            case StepHappened() if self._is_end_of_search(happened):
                return self._encode(self._builder.searched())
            case Restarted() | TextPiece():
                return self._take(happened)
            case Ended(job=job):
                return self._end(job)
            case _:
                return b""

    def _add_text(self, deduplicate: Callable[[str], str], text: str, logprobs: Logprobs) -> bytes:
        try:
            new = deduplicate(text)
        except Diverged:
            raise self._diverged() from None
        entries = self._format_logprobs(logprobs) if self._format_logprobs is not None and logprobs else ()
        return self._encode(self._builder.add_text(new, entries))

    def _take(self, happened: Restarted | TextPiece) -> bytes:
        if isinstance(happened, Restarted):
            return self._add_text(self._text.restart, happened.text, self._tokens.restart(happened.logprobs))
        return self._add_text(self._text.add, happened.text, self._tokens.add(happened.logprobs))

    def _turn(self, turn: TurnEvent) -> bytes:
        if isinstance(turn, CallEnded):
            return self._encode(self._builder.call_ended(turn))
        rest = self._add_text(self._text.restart, turn.output["text"], ())
        try:
            self._text.finish()
        except Diverged:
            raise self._diverged() from None
        self._text = TextDeduplicator()
        return rest + self._encode(self._builder.turn_ended(turn))

    def _end(self, job: Job) -> bytes:
        is_text_complete = True
        try:
            self._text.finish()
        except Diverged:
            if job.state is JobState.SUCCEEDED:
                raise self._diverged() from None
            is_text_complete = False
        *before, last = self._builder.end(job, is_text_complete=is_text_complete)
        if last["sequence_number"] < self._after or not _is_kept(job):
            # Not all sent events were kept. The last number must exceed the client's, so that it gets the final event.
            last["sequence_number"] = max(last["sequence_number"], self._after + 1)
        return self._encode([*before, last])

    def _diverged(self) -> JobUnanswered:
        return JobUnanswered(
            "a worker was lost, and the next attempt generated a different text: read the response from the beginning",
            code="worker_lost",
            job_id=self._job.id,
        )

    def _encode(self, events: Iterable[ResponseEvent]) -> bytes:
        new = [each for each in events if each["sequence_number"] > self._after]
        return b"".join(event(each["type"], str(each["sequence_number"]), each) for each in new)


def _is_kept(job: Job) -> bool:
    """True if the text was kept, so that the last event has the same number for all clients."""
    return job.output is not None or job.epoch == 0
