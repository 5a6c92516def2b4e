"""The API of the task ``image_classify``: ``POST /v1/images/classify``."""

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.classify.task import LabelScore, TopK
from headrace.features.images.classify.task import IMAGE_CLASSIFY, ImageClassifyInput, ImageClassifyRequest
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.conversation import EXAMPLE_IMAGE, FailedImage, Images

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class ImageClassifyBody(TaskBody):
    """The body of ``POST /v1/images/classify``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "vit", "images": [EXAMPLE_IMAGE], "top_k": 5},
                {"model": "vit", "images": ["https://example.com/mill.jpg", {"file_id": "file-0197f0c2"}]},
            ]
        }
    )

    images: Images
    top_k: TopK = None


class ImageLabels(BaseModel):
    """The labels of one image."""

    index: int = Field(description="the image's place in the request, from 0")
    label: str = Field(description="the label with the best score")
    scores: list[LabelScore] = Field(description="labels by falling score")


class ImageUsage(BaseModel):
    """What the answer cost."""

    images: int = Field(description="the images of the request")
    total_tokens: int = Field(description="the tokens that the model computed; usage counts them")


class ImageLabelsList(BaseModel):
    """The labels of each image that could be read, in order."""

    object: Literal["list"] = "list"
    id: str = Field(description="the job's id")
    model: str = Field(description="the model version, as `name@3`")
    data: list[ImageLabels] = Field(description="one for each image that could be read, in order")
    failed: list[FailedImage] | None = Field(None, description="the images that could not be read; absent if all could")
    usage: ImageUsage = Field(description="what it cost")


def to_job(asked: ImageClassifyBody) -> ImageClassifyRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    source = ImageClassifyInput.model_construct(images=asked.images)
    return order_of(asked, ImageClassifyRequest, {"task": IMAGE_CLASSIFY.name, "input": source, "top_k": asked.top_k})


def labels_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    output = answer_of(job)
    found: list[list[dict[str, Any]]] = output["classifications"]
    data = [
        {"index": index, "label": scores[0]["label"], "scores": scores} for index, scores in enumerate(found) if scores
    ]
    tokens = int((job.usage or {}).get("input_tokens", job.input_tokens))
    return {
        "object": "list",
        "id": job.id,
        "model": f"{job.model}@{job.model_version}",
        "data": data,
        **({"failed": output["failed"]} if output.get("failed") else {}),
        "usage": {"images": len(found), "total_tokens": tokens},
    }


@router.post("/classify", response_model=ImageLabelsList, summary="Classify images")
async def classify_images(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ImageClassifyBody, origin: OriginOf
) -> Response:
    """Store a job for the images, and answer with their labels when it has ended.

    An image that could not be read is in `failed`; if none could, the answer is an error. A caller who leaves before
    the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: ImageClassifyBody) -> ParsedRequest:
    return ParsedRequest(to_job(asked), labels_answer, as_sent)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(ImageClassifyBody.model_validate(body))


PART = TaskRoutes(IMAGE_CLASSIFY, (router,), {"/v1/images/classify": _parse})
