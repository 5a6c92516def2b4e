"""OpenAI's images API: the fields of a request, its answer from the job and its files, and its stream."""

from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.diffusion.pictures import Guidance, NegativePrompt, Prompt, Seed, Steps
from headrace.features.files import result_links
from headrace.features.files.blob_storage import Blobs, read_blocks
from headrace.producer_api.http.job_options import is_kept, unsupported
from headrace.producer_api.http.views import ObjectResponse
from headrace.producer_api.jobs.synchronous import ClientConnection
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.sse import PING, Heartbeat, named
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.streaming.job_events import Ended, Progressed, follow
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job
from headrace.store.tasks.own_task import OwnTaskSpec
from headrace.store.tenants.api_keys import Principal

_LINK_S: Final = 3600
_NAMES: Final = {
    "count": "n",
    "format": "output_format",
    "quality": "output_compression",
    "previews": "partial_images",
    "images": "image",
}
"""What OpenAI calls fields of an order."""

_HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {
    "background": (None, "auto", "opaque"),
    "quality": (None, "auto", "standard"),
    "moderation": (None, "auto"),
    "style": (None,),
    "input_fidelity": (None,),
    "complexity": (None,),
    "frame_count": (None,),
    "frame_duration_ms": (None,),
    "svg": (None,),
}
_INSTEAD: Final = {
    "background": "pictures are opaque",
    "quality": "send `steps`, the number of denoising steps",
    "moderation": "the organization's policy decides",
    "style": "say it in the prompt",
    "input_fidelity": "send `strength`",
}


class ImagesBody(TaskBody):
    """The fields of OpenAI's that both URLs have, and our own: ``extra_body`` of the client sends them."""

    prompt: Prompt
    n: int | None = Field(None, description="how many pictures, at most 10")
    size: str | None = Field(None, description="`512x768`; `auto` and none: the model's own, or that of the picture")
    output_format: str | None = Field(None, description="png, jpeg or webp; png by default")
    output_compression: int | None = Field(None, description="quality of jpeg and webp, from 1 to 100")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="`url`: a link, good for an hour")
    stream: bool | None = Field(None, description="send events as the picture is made")
    partial_images: int | None = Field(None, description="in a stream, how many previews, 0 to 3")
    background: str | None = Field(None, description="`auto` or `opaque`")
    quality: str | None = Field(None, description="`auto`: send `steps` instead")
    moderation: str | None = Field(None, description="`auto`: the organization's policy decides")
    style: str | None = Field(None, description="not supported")
    input_fidelity: str | None = Field(None, description="not supported")
    complexity: str | None = Field(None, description="not supported")
    frame_count: int | None = Field(None, description="not supported")
    frame_duration_ms: int | None = Field(None, description="not supported")
    svg: dict[str, Any] | None = Field(None, description="not supported")
    safety_identifier: str | None = Field(None, description="the newer name of `user`; wins over it")
    steps: Steps = None
    guidance: Guidance = None
    seed: Seed = None
    negative_prompt: NegativePrompt = None


class ImageData(BaseModel):
    """A picture: its bytes or its link."""

    b64_json: str | None = None
    url: str | None = None


class ImagesUsage(BaseModel):
    """What the pictures cost."""

    input_tokens: int = 0
    output_tokens: int = Field(description="a token for each denoising step on 256 x 256 pixels")
    total_tokens: int


class ImagesResponse(BaseModel):
    """The pictures."""

    created: int
    data: list[ImageData]
    background: str
    output_format: str
    size: str
    usage: ImagesUsage


def order_fields(asked: ImagesBody) -> dict[str, Any]:
    """Return the fields of the order. Raises InvalidRequest for a field that is not supported."""
    for name, harmless in _HARMLESS.items():
        if getattr(asked, name) not in harmless:
            raise unsupported(f"`{name}` is not supported: {_INSTEAD.get(name, 'leave it out')}", name)
    if asked.output_format not in (None, "png", "jpeg", "webp"):
        raise unsupported("`output_format` is png, jpeg or webp", "output_format")
    if asked.partial_images and not asked.stream:
        raise unsupported("`partial_images` are parts of a stream: send `stream` too", "partial_images")
    if asked.stream and asked.response_format == "url":
        raise unsupported("a stream has the bytes of pictures: leave `response_format` url out, or `stream`", "stream")
    fields = {
        "prompt": asked.prompt,
        "count": asked.n,
        "size": None if asked.size == "auto" else asked.size,
        "format": asked.output_format,
        "quality": None if asked.output_format in (None, "png") else asked.output_compression,
        "previews": asked.partial_images,
        "steps": asked.steps,
        "guidance": asked.guidance,
        "seed": asked.seed,
        "negative_prompt": asked.negative_prompt,
    }
    return {name: value for name, value in fields.items() if value is not None}


def parsed(asked: ImagesBody, spec: OwnTaskSpec, order: Mapping[str, Any]) -> ParsedRequest:
    """Return the job that a body asks for. Raises InvalidRequest that names the field of the body."""
    if asked.safety_identifier:
        asked = asked.model_copy(update={"user": asked.safety_identifier})
    job = order_of(asked, spec.request, {"task": spec.name, "input": dict(order)}, _renamed)
    return ParsedRequest(job, lambda job: _answer(job, []), _complain)


def line_of(asked: ImagesBody, request: ParsedRequest) -> ParsedRequest:
    """Return the job of a line of a batch, whose answer has links. Raises InvalidRequest."""
    if asked.response_format == "b64_json" or asked.stream:
        raise unsupported("an answer in a batch has links: send `response_format` url", "response_format")

    def answer(db: Database, job: Job) -> dict[str, Any]:
        return _answer(job, _links(db, job, ""))

    return ParsedRequest(request.job, request.answer, request.complain, read_answer=answer)


def _renamed(name: str) -> str:
    bare = name.removeprefix("input.")
    first, dot, rest = bare.partition(".")
    return _NAMES.get(first.partition("[")[0], first) + dot + rest


def _complain(error: HeadraceError) -> HeadraceError:
    return as_sent(error, _renamed)


async def respond(
    request: Request,
    runtime: Runtime,
    blobs: Blobs,
    principal: Principal,
    asked: ImagesBody,
    wanted: ParsedRequest,
    origin: Origin,
    kind: str,
    settle: Callable[[str | None], None] = lambda _job_id: None,
) -> Response:
    """Store the job, and answer with its pictures. ``kind``: the first part of the names of events.

    ``settle`` is called with the id of the new job, None without one. It may block.
    """
    await runtime.streams.enter(request)
    job_id = None
    try:
        receipt = await runtime.submissions.submit(principal, wanted.job, origin)
        job_id = None if receipt.replayed else receipt.job_id
    except HeadraceError as error:
        raise wanted.complain(error) from error
    finally:
        await run_in_threadpool(settle, job_id)
    job = receipt.job or await runtime.reader.get(principal.tenant_id, receipt.job_id)
    headers = {**receipt.headers, "X-Job-Id": job.id, "X-Model-Version": str(job.model_version)}
    connection = ClientConnection(runtime, job, is_kept=is_kept(asked.job))
    if asked.stream:
        return connection.stream(_events(runtime, blobs, job, kind), headers)
    ended = await connection.wait(request)
    if ended is None:
        return Response()  # the caller has left
    answer_of(ended)
    if asked.response_format == "url":
        base = str(request.base_url).rstrip("/")
        data = await run_in_threadpool(_links, runtime.db, ended, base)
    else:
        data = [{"b64_json": one} for one in await run_in_threadpool(_contents, runtime.db, blobs, ended)]
    return ObjectResponse(_answer(ended, data), headers=headers)


async def _events(runtime: Runtime, blobs: Blobs, job: Job, kind: str) -> AsyncGenerator[bytes]:
    """Yield a preview as it comes, then each picture. Raises JobUnanswered for a job that does not succeed."""
    heartbeat = Heartbeat(runtime.settings.stream_ping_s)
    order = (job.payload or {}).get("input", {})
    created, number, sent = int(job.created_at.timestamp()), 0, set[str]()
    about = {"created_at": created, "size": order.get("size", "auto"), "quality": "auto", "background": "opaque"}
    async with aclosing(follow(runtime, job)) as events:
        async for happened in events:
            if happened is None:
                if heartbeat.is_due():
                    yield PING
            elif isinstance(happened, Progressed) and (url := happened.progress.preview) and url not in sent:
                sent.add(url)  # an attempt that goes on makes a preview again
                preview = {"b64_json": url.partition(",")[2], "output_format": "jpeg", "partial_image_index": number}
                yield named({"type": f"{kind}.partial_image", **preview, **about})
                number += 1
                heartbeat.beat()
            elif isinstance(happened, Ended):
                ended = _answer(happened.job, [])
                for content in await run_in_threadpool(_contents, runtime.db, blobs, happened.job):
                    shown = {"b64_json": content, "output_format": ended["output_format"], "usage": ended["usage"]}
                    yield named({"type": f"{kind}.completed", **about, **shown, "size": ended["size"]})


def _contents(db: Database, blobs: Blobs, job: Job) -> list[str]:
    found = []
    for position in range(len(answer_of(job)["files"])):
        file, _ = result_links.find(db, job.tenant_id, job.id, position)
        found.append(b64encode(b"".join(read_blocks(blobs, file.digest))).decode())
    return found


def _links(db: Database, job: Job, base: str) -> list[dict[str, str]]:
    until = int(datetime.now(UTC).timestamp()) + _LINK_S
    num_files = len(answer_of(job)["files"])
    links = (result_links.new_link(db, job.tenant_id, job.id, position, until) for position in range(num_files))
    return [{"url": base + link} for link in links]


def _answer(job: Job, data: list[dict[str, str]]) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    output = answer_of(job)
    cost = int((job.usage or {}).get("input_tokens", job.input_tokens))
    details = {"image_tokens": 0, "text_tokens": 0}
    return {
        "created": int(job.created_at.timestamp()),
        "data": data,
        "background": "opaque",
        "output_format": output["files"][0]["media_type"].partition("/")[2],
        "size": output["size"],
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": details,
            "output_tokens": cost,
            "total_tokens": cost,
        },
    }
