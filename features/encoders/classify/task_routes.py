"""The API of the task ``classify``: ``POST /v1/classify`` in the shape of vLLM, with all labels by name beside it."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.classify import moderations
from headrace.features.encoders.classify.task import CLASSIFY, MAX_CLASSIFY_INPUTS, ClassifyRequest, LabelScore
from headrace.features.encoders.encoding_body import EncodingAnswer, EncodingBody, encoding_answer, encoding_order
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import as_sent
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job

router = APIRouter(prefix="/v1", tags=["classify"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_TEXT = {"type": "string", "minLength": 1}
_PAIR = {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2}
_INPUT_SCHEMA: dict[str, Any] = {
    "title": "Input",
    "description": "a text, or a list of texts and of pairs; a pair is a list of two texts",
    "anyOf": [
        _TEXT,
        {"type": "array", "minItems": 1, "maxItems": MAX_CLASSIFY_INPUTS, "items": {"anyOf": [_TEXT, _PAIR]}},
    ],
}


class ClassifyBody(EncodingBody):
    """The body of ``POST /v1/classify``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "sentiment", "input": ["what a lovely mill", "the bread was stale"]},
                {"model": "nli", "input": [["the mill stands by the river", "there is a river"]], "top_k": 1},
            ]
        },
    )

    input: Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)]
    top_k: int | None = Field(None, description="so many of the best labels are returned; without it all")


class Classification(BaseModel):
    """The labels of one input."""

    index: int = Field(description="the input's place in the request, from 0")
    label: str = Field(description="the label with the best score")
    probs: list[float] | None = Field(
        None, description="the scores of all labels in the model's order; not with `top_k`"
    )
    num_classes: int = Field(description="how many labels the model has")
    scores: list[LabelScore] = Field(description="labels by falling score")


class ClassificationList(EncodingAnswer):
    """The labels of each input, in order."""

    data: list[Classification] = Field(description="one for each input, in order")


def to_job(asked: ClassifyBody) -> ClassifyRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    fields = {"task": CLASSIFY.name, "input": {"texts": texts}, "top_k": asked.top_k}
    return encoding_order(asked, ClassifyRequest, fields, _sent(asked))


def _sent(asked: ClassifyBody) -> Any:
    return lambda name: sent_input(name, asked.input)


def sent_input(name: str, given: object) -> str:
    """Return the field of the body for a field of the job, where ``input`` is a text or a list."""
    found = name.replace("input.texts", "input", 1)
    return found.replace("input[0]", "input", 1) if isinstance(given, str) else found


def classify_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    output = answer_of(job)
    labels: list[str] = output["labels"]
    data = []
    for index, scores in enumerate(output["classifications"]):
        by_label = {one["label"]: one["score"] for one in scores}
        one = {"index": index, "label": scores[0]["label"], "num_classes": len(labels), "scores": scores}
        if len(by_label) == len(labels):
            one["probs"] = [by_label[label] for label in labels]
        data.append(one)
    return encoding_answer(job, output, {"data": data})


@router.post("/classify", response_model=ClassificationList, summary="Classify texts")
async def classify(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ClassifyBody, origin: OriginOf
) -> Response:
    """Store a job for the texts, and answer with their labels when it has ended.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: ClassifyBody) -> ParsedRequest:
    def complain(error: HeadraceError) -> HeadraceError:
        return as_sent(error, _sent(asked))

    return ParsedRequest(to_job(asked), classify_answer, complain)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(ClassifyBody.model_validate(body))


PART = TaskRoutes(CLASSIFY, (router, moderations.router), {"/v1/classify": _parse})
