"""One caller of an OpenAI route and the job that answers it: the whole answer, or its chunks as they come.

What the answer looks like is ``chat_answer``'s and ``completion_answer``'s to say.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from producer_api.http.requests import unless_gone
from producer_api.http.views import ObjectResponse
from producer_api.jobs.cancel import ASKS_AGAIN_WITHIN_S, abandon
from producer_api.openai.chat_answer import Answer, Diverged, Splice, SpliceTokens
from producer_api.runtime import Runtime
from producer_api.server.errors import Draining, JobUnanswered, SyncTimeout, body_of
from producer_api.server.sse import PING, EventStream, Heartbeat, StreamAborted, data_only
from producer_api.streaming.job_events import Ended, Event, Restarted, TextPiece, follow, wait_until_ended
from producer_api.streaming.logprob_format import Spell, spelling_of
from store.errors import HeadraceError
from store.jobs.jobs import Job
from store.payloads.logprobs import Logprobs

_DONE = b"data: [DONE]\n\n"


class Caller:
    """One caller and the job that will answer it. ``is_kept``: the job goes on if the caller leaves."""

    def __init__(self, runtime: Runtime, job: Job, *, is_kept: bool) -> None:
        self._runtime = runtime
        self._job = job
        self._is_kept = is_kept

    async def wait(self, request: Request) -> Job | None:
        """Return the job when it has ended, None if the caller has left. Raises SyncTimeout, Draining."""
        timeout_s = self._runtime.settings.sync_timeout_s
        job = await unless_gone(request, wait_until_ended(self._runtime, self._job, timeout_s))
        if job is None:
            await self.let_go(after_s=ASKS_AGAIN_WITHIN_S)
        elif not job.state.is_terminal:
            raise self._unfinished(timeout_s)
        return job

    def _unfinished(self, timeout_s: float) -> HeadraceError:
        if self._runtime.draining.is_set():
            # Clients ask again after a 503, and then find their job.
            return Draining("this server is stopping: ask again, the job goes on", job_id=self._job.id)
        return SyncTimeout(
            f"no answer within {timeout_s:g} s: the job goes on, look for it at /v1/jobs/{self._job.id}",
            job_id=self._job.id,
        )

    async def let_go(self, *, after_s: float = 0.0) -> None:
        """The caller is no longer there; he has ``after_s`` to ask again."""
        if not self._is_kept:
            await abandon(self._runtime, self._job, after_s=after_s)

    def stream(self, told: AsyncGenerator[bytes], headers: dict[str, str]) -> Response:
        """Return what is told of the job as it comes; with a JobUnanswered it ends in an error and is cut."""
        return EventStream(
            self._chunks(told),
            open_streams=self._runtime.metrics.streams_open,
            headers=headers,
            on_gone=self.let_go,
        )

    async def _chunks(self, told: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(told) as chunks:
                async for chunk in chunks:
                    yield chunk
        except JobUnanswered as error:
            yield data_only(body_of(error))
            raise StreamAborted from error
        except Draining:
            await self.let_go()
            raise


class Call:
    """A caller and the answer that he gets. ``is_kept``: the job goes on if the caller leaves."""

    def __init__(self, runtime: Runtime, job: Job, answer: Answer, *, is_kept: bool) -> None:
        self._runtime = runtime
        self._job = job
        self._answer = answer
        self._caller = Caller(runtime, job, is_kept=is_kept)

    async def answer(self, request: Request, headers: dict[str, str]) -> Response:
        """Return the whole answer. Raises JobUnanswered, SyncTimeout, Draining."""
        job = await self._caller.wait(request)
        if job is None:
            return Response()  # nobody reads it
        return ObjectResponse(self._answer.whole(job), headers=headers)

    def stream(self, headers: dict[str, str]) -> Response:
        """Return the answer in chunks."""
        return self._caller.stream(self._told(), headers)

    async def _told(self) -> AsyncGenerator[bytes]:
        """Yield the chunks of a job that succeeds. Raises JobUnanswered for one that does not."""
        reader = _Reader(self._job, self._answer, await spelling_of(self._runtime, self._job))
        if opening := b"".join(map(data_only, self._answer.opening())):
            yield opening
        heartbeat = Heartbeat(self._runtime.settings.stream_ping_s)
        async with aclosing(follow(self._runtime, self._job)) as events:
            async for event in events:
                if event is None:
                    if heartbeat.is_due():
                        yield PING
                elif chunks := reader.read(event):
                    heartbeat.beat()
                    yield b"".join(chunks)


class _Reader:
    """Turns a job's events into chunks. What a later attempt says again is sent once."""

    def __init__(self, job: Job, answer: Answer, spell: Spell | None) -> None:
        self._job = job
        self._answer = answer
        self._spell = spell
        self._splice = Splice()
        self._tokens = SpliceTokens()

    def read(self, event: Event) -> list[bytes]:
        """Return the chunks that the event makes. Raises JobUnanswered."""
        try:
            match event:
                case Restarted(text=text, logprobs=logprobs):
                    return self._piece(self._splice.restart(text), self._tokens.restart(logprobs))
                case TextPiece(text=text, logprobs=logprobs):
                    return self._piece(self._splice.add(text), self._tokens.add(logprobs))
                case Ended(job=job):
                    return self._end(job)
                case _:
                    return []
        except Diverged:
            raise JobUnanswered(
                "a worker was lost, and the next attempt says something else: ask again",
                code="worker_lost",
                job_id=self._job.id,
            ) from None

    def _piece(self, text: str, logprobs: Logprobs) -> list[bytes]:
        entries = self._spell(logprobs) if self._spell is not None and logprobs else ()
        return [data_only(chunk) for chunk in self._answer.pieces(text, entries)] if text or entries else []

    def _end(self, job: Job) -> list[bytes]:
        chunks = [data_only(chunk) for chunk in self._answer.closing(job)]
        self._splice.finish()
        return [*chunks, _DONE]
