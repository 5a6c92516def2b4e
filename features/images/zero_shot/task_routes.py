"""The API of the task ``image_zero_shot``: ``POST /v1/images/zero_shot``. Its answer is that of the classifier."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.classify.task import TopK
from headrace.features.images.classify.task_routes import ImageLabelsList, labels_answer
from headrace.features.images.zero_shot.task import (
    DEFAULT_TEMPLATE,
    IMAGE_ZERO_SHOT,
    Candidates,
    HypothesisTemplate,
    ImageZeroShotRequest,
)
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.payloads.conversation import EXAMPLE_IMAGE, Images

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class ImageZeroShotBody(TaskBody):
    """The body of ``POST /v1/images/zero_shot``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "clip", "images": [EXAMPLE_IMAGE], "candidate_labels": ["a mill", "a loaf of bread"]},
            ]
        }
    )

    images: Images
    candidate_labels: Candidates
    hypothesis_template: HypothesisTemplate = DEFAULT_TEMPLATE
    top_k: TopK = None


def to_job(asked: ImageZeroShotBody) -> ImageZeroShotRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    source = asked.model_dump(include={"images", "candidate_labels", "hypothesis_template"})
    fields = {"task": IMAGE_ZERO_SHOT.name, "input": source, "top_k": asked.top_k}
    return order_of(asked, ImageZeroShotRequest, fields)


@router.post("/zero_shot", response_model=ImageLabelsList, summary="Classify images by labels in words")
async def classify_by_words(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ImageZeroShotBody, origin: OriginOf
) -> Response:
    """Store a job for the images, and answer with the scores of the given labels when it has ended.

    The model embeds images and texts, as CLIP. An image that could not be read is in `failed`. A caller who leaves
    before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: ImageZeroShotBody) -> ParsedRequest:
    return ParsedRequest(to_job(asked), labels_answer, as_sent)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(ImageZeroShotBody.model_validate(body))


PART = TaskRoutes(IMAGE_ZERO_SHOT, (router,), {"/v1/images/zero_shot": _parse})
