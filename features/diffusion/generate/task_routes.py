"""The API of the task ``image_generate``: OpenAI's ``POST /v1/images/generations``, whole or as a stream."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.diffusion.generate.task import IMAGE_GENERATE
from headrace.features.diffusion.openai_images import (
    ImagesBody,
    ImagesResponse,
    line_of,
    order_fields,
    parsed,
    respond,
)
from headrace.features.files.file_work import BlobsOf
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class GenerationBody(ImagesBody):
    """The body of ``POST /v1/images/generations``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "painter", "prompt": "a mill by a river", "size": "512x512"}]}
    )


def _parse(asked: GenerationBody) -> ParsedRequest:
    return parsed(asked, IMAGE_GENERATE, order_fields(asked))


@router.post("/generations", response_model=ImagesResponse, summary="Make pictures")
async def create_images(
    request: Request,
    runtime: RuntimeOf,
    blobs: BlobsOf,
    principal: JobsWriter,
    body: GenerationBody,
    origin: OriginOf,
) -> Response:
    """Store a job for the pictures; when it has ended, answer with them. With `stream` they come as events.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await respond(request, runtime, blobs, principal, body, _parse(body), origin, "image_generation")


def _line(body: Mapping[str, Any]) -> ParsedRequest:
    asked = GenerationBody.model_validate(body)
    return line_of(asked, _parse(asked))


PART = TaskRoutes(IMAGE_GENERATE, (router,), {IMAGE_GENERATE.urls[0]: _line})
