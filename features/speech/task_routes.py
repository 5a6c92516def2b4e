"""The API of the task ``speech``: OpenAI's ``POST /v1/audio/speech``. The answer is the sound, as it is made."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.files.file_work import BlobsOf
from headrace.features.speech.task import (
    MEDIA_TYPES,
    SPEECH,
    Format,
    SoundFormat,
    SpeechRequest,
    SpeechText,
    Speed,
    Voice,
)
from headrace.features.speech.voice_folder import VoiceSettings
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import is_kept, unsupported
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute, unless_gone
from headrace.producer_api.jobs.cancel import RETRY_GRACE_S
from headrace.producer_api.jobs.synchronous import ClientConnection
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED, SyncTimeout
from headrace.producer_api.server.sse import PING, Heartbeat, data_only
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.jobs.jobs import Job
from headrace.store.registry.models import queue_name

if TYPE_CHECKING:
    from headrace.features.speech.sound_answer import SoundAnswer

router = APIRouter(prefix="/v1", tags=["audio"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_CONTENT: dict[str, Any] = {one: {} for one in ("audio/mpeg", "audio/ogg", "audio/wav", "audio/flac", "audio/pcm")}
_SPEECH: dict[int | str, dict[str, Any]] = {
    200: {"description": "The sound, as it is made", "content": {**_CONTENT, "text/event-stream": {}}}
}


class SpeechBody(TaskBody):
    """The body of ``POST /v1/audio/speech``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "kokoro", "input": "こんにちは。", "voice": "jf_alpha", "response_format": "mp3"}]
        }
    )

    input: SpeechText = Field(description="the text to say")
    voice: Voice = None
    response_format: Format | Literal["aac"] = Field(SoundFormat.MP3, description="the format; aac is not supported")
    speed: Speed = 1.0
    instructions: str | None = Field(None, description="not supported")
    stream_format: Literal["audio", "sse"] = Field("audio", description="the sound itself, or events with base64 of it")


def _as_sent(error: HeadraceError) -> HeadraceError:
    return as_sent(error, lambda name: "input" if name == "input.text" else name)


def to_job(asked: SpeechBody) -> SpeechRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    if asked.instructions:
        raise unsupported("`instructions` is not supported: the voices here take none, leave it out", "instructions")
    if asked.response_format == "aac":
        known = ", ".join(SoundFormat)
        raise unsupported(f"`response_format` aac is not made here: send one of {known}", "response_format")
    fields = {name: getattr(asked, name) for name in ("voice", "response_format", "speed")}
    fields |= {"task": SPEECH.name, "input": {"text": asked.input}}
    return order_of(asked, SpeechRequest, fields, lambda name: "input" if name == "input.text" else name)


@router.post("/audio/speech", response_class=Response, responses=_SPEECH, summary="Say a text")
async def create_speech(
    request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsWriter, body: SpeechBody, origin: OriginOf
) -> Response:
    """Store a job for the text, and send its sound sentence by sentence, as it is made.

    With `stream_format` `sse` it comes as events `speech.audio.delta`, then `speech.audio.done`. All of it is also
    a file of the job in `X-Job-Id`. A caller who leaves early cancels the job, unless `job.on_disconnect` is
    `continue`.
    """
    order = to_job(body)
    try:
        from headrace.features.speech.sound_answer import SoundAnswer  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"this server sends no sound, because {error.name} is missing: install Headrace with the extra `audio`",
            code="unsupported_audio",
        ) from None
    await runtime.streams.enter(request)
    try:
        receipt = await runtime.submissions.submit(principal, order, origin)
    except HeadraceError as error:
        raise _as_sent(error) from error
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    headers = {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}
    answer = SoundAnswer(runtime, blobs, job, await run_in_threadpool(_rate, runtime, job))
    if body.stream_format == "sse":
        connection = ClientConnection(runtime, job, is_kept=is_kept(body.job))
        return connection.stream(_events(answer, runtime.settings.stream_ping_s), headers)
    connection = ClientConnection(runtime, job, is_kept=is_kept(body.job), write_error=lambda _error: b"")
    chunks = answer.chunks()
    # The status is sent with the first sound, so that a job which fails before it is answered with its error.
    first = await unless_gone(request, _first(chunks, runtime, job))
    if first is None:
        await chunks.aclose()
        await connection.on_client_gone(after_s=RETRY_GRACE_S)
        return Response()  # the caller has left
    return connection.stream(_joined(first, chunks), {**headers, "content-type": MEDIA_TYPES[order.response_format]})


async def _first(chunks: AsyncGenerator[bytes], runtime: Runtime, job: Job) -> bytes:
    """Return the first bytes. Raises JobUnanswered, SyncTimeout."""
    timeout_s = runtime.settings.sync_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in chunks:
                if chunk:
                    return chunk
    except TimeoutError:
        raise SyncTimeout(
            f"no sound within {timeout_s:g} s: the job goes on, look for it at /v1/jobs/{job.id}", job_id=job.id
        ) from None
    return b""


async def _joined(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            if chunk:
                yield chunk


async def _events(answer: "SoundAnswer", ping_s: float) -> AsyncGenerator[bytes]:
    heartbeat = Heartbeat(ping_s)
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            if chunk:
                heartbeat.beat()
                yield data_only({"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()})
            elif heartbeat.is_due():
                yield PING
    used = (answer.ended and answer.ended.usage) or {}
    tokens = {name: int(used.get(name, 0)) for name in ("input_tokens", "output_tokens")}
    yield data_only({"type": "speech.audio.done", "usage": {**tokens, "total_tokens": sum(tokens.values())}})


def _rate(runtime: Runtime, job: Job) -> int:
    """Return the samples a second of a job's voice. Blocks."""
    version = runtime.catalog.pinned(queue_name(job.model, job.model_version))
    settings: VoiceSettings = runtime.catalog.task_settings(version)
    return settings.rate


def speech_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a line of a batch; raise JobUnanswered for a job that has not succeeded."""
    output = answer_of(job)
    return {"object": "audio.speech", "id": job.id, "model": queue_name(job.model, job.model_version), **output}


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return ParsedRequest(to_job(SpeechBody.model_validate(body)), speech_answer, _as_sent)


PART = TaskRoutes(SPEECH, (router,), {SPEECH.urls[0]: _parse})
