"""The API of the task ``transcribe``: OpenAI's ``POST /v1/audio/transcriptions``, whole or as a stream."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, BlobWriter
from headrace.features.files.file_form import FileForm, read_form
from headrace.features.files.file_routes import policed_filename
from headrace.features.files.file_work import BlobsOf
from headrace.features.files.files import File, Purpose
from headrace.features.transcribe.audio_source import audio_of
from headrace.features.transcribe.task import LANGUAGE_FIELD, TRANSCRIBE, AudioSource, Language, TranscribeRequest
from headrace.features.transcribe.transcript_answer import MEDIA_TYPES, ResponseFormat, TranscriptAnswer, as_text
from headrace.features.transcribe.transcription_form import FORM, fields_of
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import is_kept, unsupported
from headrace.producer_api.http.requests import OriginHeaders, OriginHeadersOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import ObjectResponse
from headrace.producer_api.jobs.synchronous import ClientConnection, CompletionResponder, StreamFormat, error_data
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED, from_validation
from headrace.producer_api.server.sse import PING, data_only
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1", tags=["audio"], route_class=StrictJsonRoute, responses=DOCUMENTED)

# The audio goes with its job's input, if that is sooner.
_AUDIO_TTL_S = 86_400
_STREAM = StreamFormat(data_only, error_data, PING, b"")


class TranscriptionBody(TaskBody):
    """The fields of a transcription beside the file. A line of a batch names a file that was uploaded."""

    file_id: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="in a batch: the id of an uploaded file with the audio"
    )
    language: Language | None = Field(None, description=LANGUAGE_FIELD)
    response_format: ResponseFormat = Field("json", description="the shape of the answer; in a batch a JSON one")
    stream: bool = Field(False, description="send the text as events, as it is transcribed")
    temperature: float | None = Field(None, description="0: the likeliest text is the answer")
    prompt: str | None = Field(None, description="not supported")
    timestamp_granularities: list[Literal["segment", "word"]] | None = Field(None, description="`segment`")
    chunking_strategy: str | None = Field(None, description="`auto`: the audio is cut at silences")
    include: list[str] | None = Field(None, description="not supported")


def _refuse(asked: TranscriptionBody) -> None:
    """Raise InvalidRequest for a field that would change the answer and is not supported."""
    if asked.prompt:
        raise unsupported("`prompt` is not supported: leave it out", "prompt")
    if asked.temperature:
        raise unsupported("`temperature` is not supported: transcripts are the likeliest text, send 0", "temperature")
    if "word" in (asked.timestamp_granularities or ()):
        raise unsupported("times of words are not supported: send `segment`", "timestamp_granularities")
    if asked.chunking_strategy not in (None, "", "auto"):
        raise unsupported("`chunking_strategy` is not supported: send `auto`", "chunking_strategy")
    if asked.include:
        raise unsupported("`include` is not supported: leave it out", "include")
    if asked.stream and asked.response_format not in ("json", "text"):
        message = f"a stream has text alone: leave `response_format` {asked.response_format} out, or `stream`"
        raise unsupported(message, "response_format")


def to_job(asked: TranscriptionBody, file_id: str, audio: AudioSource | None, sha256: str | None) -> TranscribeRequest:
    """Return the job that the request asks for. ``audio``: what the file holds, if it came with the request."""
    _refuse(asked)
    fields = {"task": TRANSCRIBE.name, "input": {"file_id": file_id}, "language": asked.language}
    order = order_of(asked, TranscribeRequest, fields)
    return order if audio is None else order.with_audio(audio, sha256)


@router.post(
    "/audio/transcriptions",
    response_class=Response,
    openapi_extra=FORM,
    responses={200: {"description": "The transcript, in the shape that `response_format` names"}},
    summary="Transcribe audio",
)
async def create_transcription(
    request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsWriter, headers: OriginHeadersOf
) -> Response:
    """Store a job for the audio, and answer with its transcript when it has ended, or stream it as it is made.

    The audio is in WAV, FLAC, OGG or MP3, of at most `HEADRACE_MAX_AUDIO_BYTES`. A caller who leaves before the end
    cancels the job, unless `job[on_disconnect]` is `continue`.
    """
    await runtime.streams.enter(request)
    form = await read_form(request, blobs.create, runtime.settings.max_audio_bytes)
    try:
        asked = _read(fields_of(form.fields))
        _refuse(asked)
        job, answer_headers = await _submitted(runtime, blobs, principal, form, asked, headers)
    finally:
        await run_in_threadpool(form.draft.drop)
    if asked.stream:
        responder = CompletionResponder(
            runtime, job, TranscriptAnswer(), is_kept=is_kept(asked.job), stream_format=_STREAM
        )
        return responder.stream(answer_headers)
    ended = await ClientConnection(runtime, job, is_kept=is_kept(asked.job)).wait(request)
    if ended is None:
        return Response()  # the caller has left
    if (media_type := MEDIA_TYPES.get(asked.response_format)) is not None:
        return Response(as_text(ended, asked.response_format), media_type=media_type, headers=answer_headers)
    return ObjectResponse(TranscriptAnswer(asked.response_format).full_answer(ended), headers=answer_headers)


def _read(fields: Mapping[str, Any]) -> TranscriptionBody:
    try:
        return TranscriptionBody.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from error


async def _submitted(
    runtime: Runtime,
    blobs: Blobs,
    principal: Principal,
    form: FileForm[BlobWriter],
    asked: TranscriptionBody,
    headers: OriginHeaders,
) -> tuple[Job, dict[str, str]]:
    """Keep the audio as a file, and store its job. Without a job the file is deleted again.

    The audio is streamed to the storage and read from there, so that uploads are not in the memory of the API.
    """
    tenant_id, sha256 = principal.tenant_id, form.draft.digest
    threads = runtime.submissions.tenant_threads
    fields = [f"{name}={form.fields[name]}".encode() for name in sorted(form.fields)]
    origin = headers.origin([*fields, sha256.encode()], 0)
    file = await threads.run(tenant_id, lambda: _kept(runtime, principal, form, asked))
    job_id = None
    try:
        audio = await threads.run(tenant_id, lambda: audio_of(file, blobs, runtime.settings, "file"))
        order = to_job(asked, file.id, audio, sha256)
        receipt = await _submit(runtime, principal, order, origin)
        job_id = None if receipt.replayed else receipt.job_id
        job = receipt.job or await runtime.reader.get(tenant_id, receipt.job_id)
    finally:
        await threads.run(tenant_id, lambda: _settled(runtime, tenant_id, file.id, job_id))
    return job, {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}


async def _submit(runtime: Runtime, principal: Principal, order: TranscribeRequest, origin: Origin) -> Any:
    try:
        return await runtime.submissions.submit(principal, order, origin)
    except HeadraceError as error:
        raise as_sent(error) from error


def _kept(runtime: Runtime, principal: Principal, form: FileForm[BlobWriter], asked: TranscriptionBody) -> File:
    """Keep the audio as a file of the tenant, if the model may be used. Blocks."""
    runtime.submissions.version_of(principal, asked.model)
    return files.create(
        runtime.db,
        principal.tenant_id,
        form.draft,
        filename=policed_filename(runtime, principal.tenant_id, form.filename),
        purpose=Purpose.USER_DATA,
        most_bytes=runtime.settings.tenant_stored_bytes,
        ttl_s=_AUDIO_TTL_S,
    )


def _settled(runtime: Runtime, tenant_id: str, file_id: str, job_id: str | None) -> None:
    if job_id is None:
        files.discard(runtime.db, tenant_id, file_id)
    else:
        files.give_to_job(runtime.db, tenant_id, file_id, job_id)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    """Return the job of a line of a batch."""
    asked = TranscriptionBody.model_validate(body)
    if asked.file_id is None:
        raise unsupported("a line of a batch names the audio by `file_id`, an uploaded file", "file_id")
    if asked.response_format in MEDIA_TYPES:
        raise unsupported("an answer in a batch is JSON: send json or verbose_json", "response_format")
    answer = TranscriptAnswer(asked.response_format)
    return ParsedRequest(to_job(asked, asked.file_id, None, None), answer.full_answer, as_sent)


PART = TaskRoutes(TRANSCRIBE, (router,), {TRANSCRIBE.urls[0]: _parse})
