"""Waits for the job behind a request and sends its answer, whole or as a stream of chunks.

The route gives the ``Answer``, which builds the JSON.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.http.requests import unless_gone
from headrace.producer_api.http.views import ObjectResponse
from headrace.producer_api.jobs.cancel import RETRY_GRACE_S, abandon
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import Draining, JobUnanswered, SyncTimeout, body_of
from headrace.producer_api.server.sse import EventStream, Heartbeat, StreamAborted, data_only
from headrace.producer_api.streaming.answers import Answer, SeveralAnswers, num_choices_of
from headrace.producer_api.streaming.job_events import (
    Diverged,
    Ended,
    Event,
    FormatLogprobs,
    Restarted,
    TextDeduplicator,
    TextPiece,
    TokenDeduplicator,
    follow,
    logprob_formatter,
    wait_until_ended,
)
from headrace.producer_api.streaming.turns import CallEnded, TurnCall, TurnEnded, TurnEvent, follow_turns, turns_of
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.streams.checkpoints import Logprobs
from headrace.store.tenants.api_keys import Principal


@dataclass(frozen=True, slots=True)
class EndedJob:
    """An ended job and the headers of the answer."""

    job: Job
    headers: dict[str, str]


async def submit_and_wait(
    runtime: Runtime, request: Request, principal: Principal, order: JobOrder, origin: Origin, *, is_kept: bool
) -> EndedJob | None:
    """Store a job and return it when it has ended, or None if the client disconnected before.

    Raises what a submission raises, SyncTimeout, and Draining.
    """
    await runtime.streams.enter(request)
    receipt = await runtime.submissions.submit(principal, order, origin)
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    headers = {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}
    ended = await ClientConnection(runtime, job, is_kept=is_kept).wait(request)
    return None if ended is None else EndedJob(ended, headers)


@runtime_checkable
class TurnsAnswer(Answer, Protocol):
    """The answer of a job whose model calls tools of the server. ``needs_turns``: a whole answer shows all turns."""

    needs_turns: bool

    def turn_ended(self, output: Mapping[str, Any], calls: Sequence[TurnCall]) -> Sequence[dict[str, Any]]:
        """Return the chunks for the end of a turn, all of whose text was given to ``pieces``."""
        ...

    def call_ended(self, ended: CallEnded) -> Sequence[dict[str, Any]]:
        """Return the chunks for the result of a call."""
        ...


def read_turns(db: Database, job: Job, answer: TurnsAnswer) -> None:
    """Give an answer the turns of its job, which has ended. Blocks. Raises CannotOpen."""
    for event in turns_of(db, job):
        _take(answer, event)


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """How an API writes a stream: each chunk, an error, a ping, and what follows the last chunk."""

    chunk: Callable[[dict[str, Any]], bytes]
    error: Callable[[HeadraceError], bytes]
    ping: bytes
    end: bytes


def error_data(error: HeadraceError) -> bytes:
    """Return an error as an event of a stream."""
    return data_only(body_of(error))


class ClientConnection:
    """One client connection and the job that answers it.

    ``is_kept``: the job continues if the client disconnects. ``write_error`` writes an error in a stream.
    """

    def __init__(
        self, runtime: Runtime, job: Job, *, is_kept: bool, write_error: Callable[[HeadraceError], bytes] = error_data
    ) -> None:
        self._runtime = runtime
        self._job = job
        self._is_kept = is_kept
        self._write_error = write_error

    async def wait(self, request: Request) -> Job | None:
        """Return the job when it has ended, None if the client disconnected. Raises SyncTimeout, Draining."""
        timeout_s = self._runtime.settings.sync_timeout_s
        job = await unless_gone(request, wait_until_ended(self._runtime, self._job, timeout_s))
        if job is None:
            await self.on_client_gone(after_s=RETRY_GRACE_S)
        elif not job.state.is_terminal:
            raise self._unfinished(timeout_s)
        return job

    def _unfinished(self, timeout_s: float) -> HeadraceError:
        if self._runtime.draining.is_set():
            # Clients retry after a 503 and then find their job.
            return Draining("this server is stopping: ask again, the job goes on", job_id=self._job.id)
        return SyncTimeout(
            f"no answer within {timeout_s:g} s: the job goes on, look for it at /v1/jobs/{self._job.id}",
            job_id=self._job.id,
        )

    async def on_client_gone(self, *, after_s: float = 0.0) -> None:
        """Cancel the disconnected client's job after ``after_s`` seconds, unless it is kept or the client retries."""
        if not self._is_kept:
            await abandon(self._runtime, self._job, after_s=after_s)

    def stream(self, chunks: AsyncGenerator[bytes], headers: dict[str, str]) -> Response:
        """Return a stream of the chunks. On JobUnanswered it sends the error and closes the connection."""
        return EventStream(
            self._until_error(chunks),
            while_open=self._runtime.metrics.streams_open.track_inprogress,
            headers=headers,
            on_gone=self.on_client_gone,
        )

    async def _until_error(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        except JobUnanswered as error:
            yield self._write_error(error)
            raise StreamAborted from error
        except Draining:
            await self.on_client_gone()
            raise


class CompletionResponder:
    """Sends the answer of one job to one client. ``is_kept``: the job continues if the client disconnects."""

    def __init__(
        self, runtime: Runtime, job: Job, answer: Answer, *, is_kept: bool, stream_format: StreamFormat
    ) -> None:
        self._runtime = runtime
        self._job = job
        self._answer = answer
        self._format = stream_format
        self._connection = ClientConnection(runtime, job, is_kept=is_kept, write_error=stream_format.error)

    async def answer(self, request: Request, headers: dict[str, str]) -> Response:
        """Return the whole answer. Raises JobUnanswered, SyncTimeout, Draining."""
        job = await self._connection.wait(request)
        if job is None:
            return Response()  # the client is gone
        if isinstance(self._answer, TurnsAnswer) and self._answer.needs_turns:
            await run_in_threadpool(read_turns, self._runtime.db, job, self._answer)
        return ObjectResponse(self._answer.full_answer(job), headers=headers)

    def stream(self, headers: dict[str, str]) -> Response:
        """Return the answer as a stream of chunks."""
        return self._connection.stream(self._chunks(), headers)

    async def _chunks(self) -> AsyncGenerator[bytes]:
        """Yield the chunks of a job that succeeds. Raises JobUnanswered for one that does not."""
        format_logprobs = await logprob_formatter(self._runtime, self._job)
        encoder = _ChunkEncoder(self._job, self._answer, format_logprobs, self._format)
        if opening := b"".join(map(self._format.chunk, self._answer.opening())):
            yield opening
        heartbeat = Heartbeat(self._runtime.settings.stream_ping_s)
        has_turns = isinstance(self._answer, TurnsAnswer)
        followed = (follow_turns if has_turns else follow)(self._runtime, self._job)
        async with aclosing(followed) as events:
            async for event in events:
                if event is None:
                    if heartbeat.is_due():
                        yield self._format.ping
                elif chunks := encoder.encode(event):
                    heartbeat.beat()
                    yield b"".join(chunks)


def _take(answer: TurnsAnswer, event: TurnEvent) -> None:
    """Give an answer a turn that has ended with calls, or the result of a call."""
    if isinstance(event, CallEnded):
        answer.call_ended(event)
    else:
        answer.pieces(event.output["text"])
        answer.turn_ended(event.output, event.calls)


class _ChunkEncoder:
    """Encodes a job's events as chunks. Text that a later attempt repeats is sent once."""

    def __init__(
        self, job: Job, answer: Answer, format_logprobs: FormatLogprobs | None, stream_format: StreamFormat
    ) -> None:
        self._job = job
        self._answer = answer
        # Looked at once: whether an object has a protocol's methods takes longer than to write a chunk.
        self._several = answer if isinstance(answer, SeveralAnswers) else None
        self._format = stream_format
        self._format_logprobs = format_logprobs
        num_choices = num_choices_of(job)
        self._texts = [TextDeduplicator() for _ in range(num_choices)]
        self._tokens = [TokenDeduplicator() for _ in range(num_choices)]

    def encode(self, event: Event | TurnEvent) -> list[bytes]:
        """Return the chunks for the event. Raises JobUnanswered."""
        try:
            match event:
                case TurnEnded() | CallEnded() if isinstance(self._answer, TurnsAnswer):
                    return self._turn(self._answer, event)
                case Restarted():
                    return self._restart(event)
                case TextPiece(text=text, logprobs=logprobs, choice=choice):
                    return self._piece(self._texts[choice].add(text), self._tokens[choice].add(logprobs), choice)
                case Ended(job=job):
                    return self._end(job)
                case _:
                    return []
        except Diverged:
            raise JobUnanswered(
                "a worker was lost, and the next attempt generated a different text: send the request again",
                code="worker_lost",
                job_id=self._job.id,
            ) from None

    def _turn(self, answer: TurnsAnswer, event: TurnEvent) -> list[bytes]:
        """Return what is left of a turn that has ended, and its calls; or the result of a call."""
        if isinstance(event, CallEnded):
            return [*map(self._format.chunk, answer.call_ended(event))]
        (text,) = self._texts
        chunks = self._piece(text.restart(event.output["text"]), (), 0)
        text.finish()
        self._texts, self._tokens = [TextDeduplicator()], [TokenDeduplicator()]
        return [*chunks, *map(self._format.chunk, answer.turn_ended(event.output, event.calls))]

    def _restart(self, happened: Restarted) -> list[bytes]:
        chunks: list[bytes] = []
        for choice, (text, tokens) in enumerate(zip(self._texts, self._tokens, strict=True)):
            kept = happened.kept_of(choice)
            chunks += self._piece(text.restart(kept.text), tokens.restart(kept.logprobs), choice)
        return chunks

    def _piece(self, text: str, logprobs: Logprobs, choice: int) -> list[bytes]:
        entries = self._format_logprobs(logprobs) if self._format_logprobs is not None and logprobs else ()
        if not (text or entries):
            return []
        if self._several is not None:
            return [*map(self._format.chunk, self._several.pieces_of(choice, text, entries))]
        return [*map(self._format.chunk, self._answer.pieces(text, entries))]

    def _end(self, job: Job) -> list[bytes]:
        chunks = [*map(self._format.chunk, self._answer.closing(job))]
        for text in self._texts:
            text.finish()
        return [*chunks, self._format.end]
