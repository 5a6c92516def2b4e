"""A response's events for one reader, from any number on, while it is generated and after.

Every reader is told all of it, and gets what comes after the number that he has. Knows no HTTP but server-sent events.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from producer_api.openai.chat_answer import Diverged, Splice, SpliceTokens
from producer_api.responses.response_events import Event as Told
from producer_api.responses.response_events import Narrator
from producer_api.runtime import Runtime
from producer_api.server.errors import JobUnanswered
from producer_api.server.sse import LINE_PING, Heartbeat, event
from producer_api.streaming.job_events import Ended, Event, Restarted, Started, TextPiece, follow
from producer_api.streaming.logprob_format import Spell, spelling_of
from store.jobs.jobs import Job
from store.jobs.responses import StoredResponse
from store.payloads.logprobs import Logprobs
from store.schema.job_states import JobState

BEFORE_ALL = -1


async def read_events(
    runtime: Runtime, job: Job, row: StoredResponse, after: int = BEFORE_ALL
) -> AsyncGenerator[bytes]:
    """Yield the events after number ``after``, and pings. Ends after the terminal one and not otherwise.

    Raises JobUnanswered if a second attempt says something else than was sent, Draining and Unavailable as ``follow``.
    """
    reader = _Reader(job, row, after, await spelling_of(runtime, job))
    if opening := reader.opening():
        yield opening
    heartbeat = Heartbeat(runtime.settings.stream_ping_s)
    async with aclosing(follow(runtime, job)) as events:
        async for happened in events:
            if happened is None:
                if heartbeat.is_due():
                    yield LINE_PING
            elif told := reader.read(happened):
                heartbeat.beat()
                yield told


class _Reader:
    """What one reader has, and what he gets for what happens."""

    def __init__(self, job: Job, row: StoredResponse, after: int, spell: Spell | None) -> None:
        self._job = job
        self._after = after
        self._spell = spell
        self._narrator = Narrator(job, row)
        self._splice = Splice()
        self._tokens = SpliceTokens()

    def opening(self) -> bytes:
        return self._encode(self._narrator.opening())

    def read(self, happened: Event) -> bytes:
        """Return the events that this makes, as far as the reader lacks them. Raises JobUnanswered."""
        match happened:
            case Started():
                return self._encode(self._narrator.started())
            case Restarted(text=text, logprobs=logprobs):
                return self._say(self._splice.restart, text, self._tokens.restart(logprobs))
            case TextPiece(text=text, logprobs=logprobs):
                return self._say(self._splice.add, text, self._tokens.add(logprobs))
            case Ended(job=job):
                return self._end(job)
            case _:
                return b""

    def _say(self, splice: Callable[[str], str], text: str, logprobs: Logprobs) -> bytes:
        try:
            new = splice(text)
        except Diverged:
            raise self._diverged() from None
        entries = self._spell(logprobs) if self._spell is not None and logprobs else ()
        return self._encode(self._narrator.say(new, entries))

    def _end(self, job: Job) -> bytes:
        is_told = True
        try:
            self._splice.finish()
        except Diverged:
            if job.state is JobState.SUCCEEDED:
                raise self._diverged() from None
            is_told = False
        *before, last = self._narrator.end(job, is_told=is_told)
        if last["sequence_number"] < self._after or not _is_kept(job):
            # What was sent was not all kept: whoever has more than there is now still learns how it ended.
            last["sequence_number"] = max(last["sequence_number"], self._after + 1)
        return self._encode([*before, last])

    def _diverged(self) -> JobUnanswered:
        return JobUnanswered(
            "a worker was lost, and the next attempt says something else: read the response from its beginning",
            code="worker_lost",
            job_id=self._job.id,
        )

    def _encode(self, told: Iterable[Told]) -> bytes:
        return b"".join(
            event(one["type"], str(one["sequence_number"]), one) for one in told if one["sequence_number"] > self._after
        )


def _is_kept(job: Job) -> bool:
    """True if the number of a job's last event is the same for all who read it: its text was kept."""
    return job.output is not None or job.epoch == 0
