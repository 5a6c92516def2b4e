"""Streams a response's events to one client as server-sent events, during generation and afterwards.

All events are rebuilt for each client; those up to its ``sequence_number`` are skipped.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from producer_api.openai.chat_answer import Diverged, TextDeduplicator, TokenDeduplicator
from producer_api.responses.response_events import Event as ResponseEvent
from producer_api.responses.response_events import ResponseEventBuilder
from producer_api.runtime import Runtime
from producer_api.server.errors import JobUnanswered
from producer_api.server.sse import LINE_PING, Heartbeat, event
from producer_api.streaming.job_events import (
    Ended,
    Event,
    FormatLogprobs,
    Restarted,
    Started,
    TextPiece,
    follow,
    logprob_formatter,
)
from store.jobs.jobs import Job
from store.jobs.responses import StoredResponse
from store.schema.job_states import JobState
from store.streams.checkpoints import Logprobs

BEFORE_ALL = -1


async def read_events(
    runtime: Runtime, job: Job, row: StoredResponse, after: int = BEFORE_ALL
) -> AsyncGenerator[bytes]:
    """Yield the events after number ``after``, and pings. Ends only after the terminal event.

    Raises JobUnanswered if a second attempt generates a different text, Draining and Unavailable as ``follow``.
    """
    encoder = _EventEncoder(job, row, after, await logprob_formatter(runtime, job))
    if opening := encoder.opening():
        yield opening
    heartbeat = Heartbeat(runtime.settings.stream_ping_s)
    async with aclosing(follow(runtime, job)) as events:
        async for happened in events:
            if happened is None:
                if heartbeat.is_due():
                    yield LINE_PING
            elif encoded := encoder.encode(happened):
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

    def opening(self) -> bytes:
        return self._encode(self._builder.opening())

    def encode(self, happened: Event) -> bytes:
        """Return the events that the client does not have yet. Raises JobUnanswered."""
        match happened:
            case Started():
                return self._encode(self._builder.started())
            case Restarted(text=text, logprobs=logprobs):
                return self._add_text(self._text.restart, text, self._tokens.restart(logprobs))
            case TextPiece(text=text, logprobs=logprobs):
                return self._add_text(self._text.add, text, self._tokens.add(logprobs))
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
