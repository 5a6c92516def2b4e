"""The API of the task ``video_generate``: OpenAI's ``/v1/videos``. A video is a job, and has its id."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.diffusion.form_fields import read_fields, validated
from headrace.features.diffusion.pictures import Guidance, NegativePrompt, Prompt, Seed, Steps
from headrace.features.diffusion.video.task import MOST_FORM_BYTES, VIDEO_GENERATE, Format, Fps, Frames, Seconds
from headrace.features.files import result_links
from headrace.features.files.content_answer import content_answer
from headrace.features.files.file_work import BlobsOf
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.job_options import unsupported
from headrace.producer_api.http.requests import OriginHeadersOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse, seconds
from headrace.producer_api.jobs.job_routes import JobId, delete_contents
from headrace.producer_api.reads.job_loader import restored
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.streaming.job_events import progress_of
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Gone, HeadraceError, InvalidRequest, NotFound
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from headrace.store.streams.stream_log import Progress
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/videos", tags=["videos"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_STATUS: Mapping[JobState, Literal["queued", "in_progress", "completed"]] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
}
_EXAMPLE = {"model": "filmer", "prompt": "a mill by a river", "size": "832x480", "seconds": 4}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The video", "content": {"video/mp4": {}, "video/webm": {}}}
}


class VideoBody(TaskBody):
    """The body of ``POST /v1/videos``, as a form or as JSON. OpenAI's client sends our own fields by ``extra_body``."""

    prompt: Prompt
    size: str | None = Field(None, description="`832x480`; by default the model's own")
    seconds: Seconds = None
    frames: Frames = None
    fps: Fps = None
    steps: Steps = None
    guidance: Guidance = None
    negative_prompt: NegativePrompt = None
    seed: Seed = None
    format: Format = "mp4"
    input_reference: dict[str, Any] | str | None = Field(None, description="not supported")


class VideoError(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video, from its order on."""

    id: str = Field(description="also the id of its job")
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="0 to 100")
    created_at: int
    completed_at: int | None
    expires_at: int | None = None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None = None
    error: VideoError | None


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A video whose contents were deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def video_object(job: Job, progress: Progress | None = None) -> VideoObject:
    """Return a job as a video. ``progress``: of one that runs."""
    order = job.payload["input"]
    status = _STATUS.get(job.state, "failed")
    told = 0 if progress is None or progress.total <= 0 else int(99 * min(1, progress.done / progress.total))
    return VideoObject(
        id=job.id,
        model=job.model,
        status=status,
        progress=100 if status == "completed" else told,
        created_at=int(job.created_at.timestamp()),
        completed_at=seconds(job.completed_at),
        prompt=order["prompt"],
        size=order["size"],
        seconds=f"{order['frames'] / order['fps']:.4g}",
        error=_error_of(job) if status == "failed" else None,
    )


def _error_of(job: Job) -> VideoError:
    try:
        answer_of(job)
    except HeadraceError as error:
        return VideoError(code=error.code, message=error.message)
    raise TypeError("a job that succeeded has no error")


def _parsed(asked: VideoBody) -> ParsedRequest:
    """Return the job of a body. Raises InvalidRequest."""
    if asked.input_reference is not None:
        raise unsupported(
            "`input_reference` is not supported: videos are made from the prompt alone, leave it out", "input_reference"
        )
    shared = TaskBody.model_fields.keys() | {"input_reference"}
    order = {name: value for name, value in asked.model_dump().items() if name not in shared and value is not None}
    job = order_of(asked, VIDEO_GENERATE.request, {"task": VIDEO_GENERATE.name, "input": order})
    return ParsedRequest(job, lambda job: _answer(job), as_sent)


def _answer(job: Job) -> dict[str, Any]:
    answer_of(job)
    return video_object(job).model_dump()


def _schema() -> dict[str, Any]:
    hidden = ("job", "metadata", "input_reference")
    fields = {name: one for name, one in VideoBody.model_json_schema()["properties"].items() if name not in hidden}
    schema = {"type": "object", "required": ["model", "prompt"], "properties": fields}
    content = {kind: {"schema": schema, "example": _EXAMPLE} for kind in ("multipart/form-data", "application/json")}
    return {"requestBody": {"required": True, "content": content}}


@router.post("", response_model=VideoObject, openapi_extra=_schema(), summary="Make a video")
async def create_video(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, headers: OriginHeadersOf
) -> Response:
    """Store a job for the video, and answer at once. Ask for the video until its status is `completed` or `failed`."""
    async with read_fields(request, MOST_FORM_BYTES, 1) as (fields, _, files):
        for name, _ in files:
            fields[name] = "a file"
    asked = validated(VideoBody, fields)
    wanted = _parsed(asked)
    sent = orjson.dumps(fields)  # a form has another boundary each time
    try:
        receipt = await runtime.submissions.submit(principal, wanted.job, headers.origin([sent], len(sent)))
    except HeadraceError as error:
        raise wanted.complain(error) from error
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    shown = {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}
    return JsonResponse(video_object(job), headers=shown)


@router.get("", response_model=VideoList, summary="List videos")
async def list_videos(
    runtime: RuntimeOf,
    principal: JobsReader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="newest first (desc) or oldest first (asc)")] = "desc",
) -> Response:
    """Return the videos that are kept. A page looks at up to 5,000 jobs, so it may have few although more follow."""

    def read(db: Database) -> tuple[list[Job], str | None, bool]:
        found = jobs.list_jobs(
            db,
            principal.tenant_id,
            task=VIDEO_GENERATE.name,
            limit=limit + 1,
            after=after,
            descending=order == "desc",
        )
        page = [*map(restored, found[:limit])]
        last_id = found.read_to or (page[-1].id if page else None)
        return page, last_id, len(found) > limit or found.read_to is not None

    page, last_id, has_more = await runtime.lists.read(principal, read)
    kept = [job for job in page if job.output_purged_at is None]
    told = await asyncio.gather(*(progress_of(runtime, job) for job in kept))
    data = [video_object(*one) for one in zip(kept, told, strict=True)]
    first_id = data[0].id if data else None
    return JsonResponse(VideoList(data=data, first_id=first_id, last_id=last_id, has_more=has_more))


@router.get("/{video_id}", response_model=VideoObject, summary="Retrieve a video")
async def get_video(runtime: RuntimeOf, principal: JobsReader, video_id: JobId) -> Response:
    """Return the video as it is now."""
    job = await _video(runtime, principal, video_id)
    return JsonResponse(video_object(job, await progress_of(runtime, job)))


@router.get("/{video_id}/content", response_class=Response, responses=_CONTENT, summary="Download a video")
async def get_content(
    request: Request,
    runtime: RuntimeOf,
    blobs: BlobsOf,
    principal: JobsReader,
    video_id: JobId,
    variant: Annotated[str, Query(description="`video`; others are not made")] = "video",
) -> Response:
    """Return the video, or a range of its bytes."""
    if variant != "video":
        raise unsupported(f"`variant` {variant} is not made: send `video`", "variant")
    job = await _video(runtime, principal, video_id)
    if not job.state.is_terminal:
        raise Conflict(f"the video {video_id} is {_STATUS[job.state]}: ask for it until it is completed")
    answer_of(job)
    file, media_type = await run_in_threadpool(result_links.find, runtime.db, principal.tenant_id, job.id, 0)
    return await content_answer(request, blobs, file, media_type, is_named=True)


@router.delete("/{video_id}", response_model=VideoDeleted, summary="Delete a video")
async def delete_video(request: Request, runtime: RuntimeOf, principal: JobsWriter, video_id: JobId) -> Response:
    """Delete the video and its prompt. One that is not ended is cancelled first by `POST /v1/jobs/{id}/cancel`."""
    job = await _video(runtime, principal, video_id)
    await run_in_threadpool(delete_contents, runtime, principal, job.id, request.state.request_id)
    return JsonResponse(VideoDeleted(id=job.id))


@router.post("/{video_id}/remix", response_class=Response, summary="Not supported")
async def remix_video(runtime: RuntimeOf, principal: JobsWriter, video_id: JobId) -> Response:
    """Refuse: no pipeline here changes a video."""
    await _video(runtime, principal, video_id)
    raise InvalidRequest(
        "`remix` is not supported, because no model here changes a video: make a new one with another prompt and the "
        "same `seed`"
    )


async def _video(runtime: Runtime, principal: Principal, video_id: str) -> Job:
    try:
        job = await runtime.reader.get(principal.tenant_id, video_id)
    except (Gone, NotFound):
        raise NotFound(f"no video {video_id}") from None
    if job.task != VIDEO_GENERATE.name:
        raise NotFound(f"no video {video_id}")
    return job


def _line(body: Mapping[str, Any]) -> ParsedRequest:
    """Return the job of a line of a batch."""
    return _parsed(VideoBody.model_validate(body))


PART = TaskRoutes(VIDEO_GENERATE, (router,), {VIDEO_GENERATE.urls[0]: _line})
