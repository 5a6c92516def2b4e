"""The OpenAI face: chat completions, whole or streamed, answered by an ordinary job."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from producer_api.auth import JobsWriter
from producer_api.cancelling import ASKS_AGAIN_WITHIN_S, abandon
from producer_api.chat_answer import Completion, Diverged, Splice
from producer_api.chat_request import ChatRequest, OnDisconnect, as_sent, to_job
from producer_api.chat_views import DOCUMENTED_COMPLETION
from producer_api.errors import DOCUMENTED, Draining, JobUnanswered, SyncTimeout, body_of
from producer_api.event_stream import PING, EventStream, Heartbeat, StreamAborted, data_only
from producer_api.following import Ended, Event, Restarted, TextPiece, follow, wait_until_ended
from producer_api.requests import OriginOf, RuntimeOf, StrictJsonRoute, unless_gone
from producer_api.runtime import Runtime
from producer_api.views import ObjectResponse
from store.errors import HeadraceError
from store.jobs import Job

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_DONE = b"data: [DONE]\n\n"


@router.post(
    "/chat/completions",
    response_class=Response,
    responses=DOCUMENTED_COMPLETION,
    summary="Answer a conversation",
)
async def create_chat_completion(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: ChatRequest,
    origin: OriginOf,
) -> Response:
    """Store a job for the conversation and answer when it has ended, or stream it as it comes.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    wanted = to_job(body)
    try:
        receipt = await runtime.submissions.submit(principal, wanted, origin)
    except HeadraceError as error:
        raise as_sent(error, body) from error
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    headers = {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}
    call = _Call(runtime, job, body)
    return call.stream(headers) if body.stream else await call.answer(request, headers)


class _Call:
    """One caller and the job that will answer it."""

    def __init__(self, runtime: Runtime, job: Job, body: ChatRequest) -> None:
        self._runtime = runtime
        self._job = job
        self._completion = Completion(job, with_usage=body.wants_usage)
        self._is_kept = body.on_disconnect is OnDisconnect.CONTINUE

    async def answer(self, request: Request, headers: dict[str, str]) -> Response:
        """Return the whole completion. Raises JobUnanswered, SyncTimeout, Draining."""
        timeout_s = self._runtime.settings.sync_timeout_s
        job = await unless_gone(request, wait_until_ended(self._runtime, self._job, timeout_s))
        if job is None:
            await self._let_go(after_s=ASKS_AGAIN_WITHIN_S)
            return Response()  # nobody reads it
        if not job.state.is_terminal:
            raise await self._unfinished(timeout_s)
        return ObjectResponse(self._completion.whole(job), headers=headers)

    async def _unfinished(self, timeout_s: float) -> HeadraceError:
        if self._runtime.draining.is_set():
            await self._let_go()
            return Draining("this server is stopping: try again")
        return SyncTimeout(
            f"no answer within {timeout_s:g} s: the job goes on, look for it at /v1/jobs/{self._job.id}",
            job_id=self._job.id,
        )

    def stream(self, headers: dict[str, str]) -> Response:
        """Return the completion in chunks."""
        return EventStream(
            self._chunks(), open_streams=self._runtime.metrics.streams_open, headers=headers, on_gone=self._let_go
        )

    async def _chunks(self) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(self._told()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except JobUnanswered as error:
            yield data_only(body_of(error))
            raise StreamAborted from error
        except Draining:
            await self._let_go()
            raise

    async def _told(self) -> AsyncGenerator[bytes]:
        """Yield the chunks of a job that succeeds. Raises JobUnanswered for one that does not."""
        yield data_only(self._completion.opening())
        splice = Splice()
        heartbeat = Heartbeat(self._runtime.settings.stream_ping_s)
        async with aclosing(follow(self._runtime, self._job)) as events:
            async for event in events:
                if event is None:
                    if heartbeat.is_due():
                        yield PING
                elif chunks := self._read(event, splice):
                    heartbeat.beat()
                    yield b"".join(chunks)

    def _read(self, event: Event, splice: Splice) -> list[bytes]:
        try:
            match event:
                case Restarted(text=text) | TextPiece(text=text):
                    new = splice.restart(text) if isinstance(event, Restarted) else splice.add(text)
                    return [data_only(self._completion.piece(new))] if new else []
                case Ended(job=job):
                    return self._end(job, splice)
                case _:
                    return []
        except Diverged:
            raise JobUnanswered(
                "a worker was lost, and the next attempt says something else: ask again",
                code="worker_lost",
                job_id=self._job.id,
            ) from None
        return []

    def _end(self, job: Job, splice: Splice) -> list[bytes]:
        chunks = [data_only(chunk) for chunk in self._completion.closing(job)]
        splice.finish()
        return [*chunks, _DONE]

    async def _let_go(self, *, after_s: float = 0.0) -> None:
        """The caller is no longer there."""
        if not self._is_kept:
            await abandon(self._runtime, self._job, after_s=after_s)
