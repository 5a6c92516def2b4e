"""Route of OpenAI's moderations: a job of the task ``classify``, whose labels are the categories."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.classify.task import CLASSIFY, ClassifyRequest
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import TaskBody, as_sent, order_of
from headrace.producer_api.tasks.task_routes import ParsedRequest
from headrace.store.errors import InvalidRequest
from headrace.store.ids import new_id
from headrace.store.jobs.jobs import Job

router = APIRouter(prefix="/v1/moderations", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)

FLAGGED_FROM = 0.5
"""A text with at least this score is flagged in the category."""

HARMLESS = frozenset(["ok", "safe", "neutral", "normal", "none", "clean", "non-toxic", "non_toxic", "not_toxic"])
"""Labels, in small letters, that are no categories."""


class ModerationBody(TaskBody):
    """The body of ``POST /v1/moderations``."""

    model_config = ConfigDict(
        extra="allow", frozen=True, json_schema_extra={"examples": [{"model": "toxicity", "input": "I love rivers."}]}
    )

    model: str = Field("omni-moderation-latest", description="a classifier of texts that is registered here")
    input: str | list[str] | list[dict[str, Any]] = Field(
        description="a text, several texts with one result each, or the parts of one text"
    )


class ModerationResult(BaseModel):
    """The classifier's result for one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class Moderation(BaseModel):
    """The classifier's results. ``model`` is the model that ran."""

    id: str
    model: str
    results: list[ModerationResult]


@router.post("", response_model=Moderation, summary="Moderate texts by a classifier")
async def create_moderation(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ModerationBody, origin: OriginOf
) -> Response:
    """Store a job for the texts, and answer with the classifier's labels as categories when it has ended.

    A label such as `safe` or `OK` is no category.
    """
    fields = {"task": CLASSIFY.name, "input": {"texts": _texts(body.input)}}
    parsed = ParsedRequest(order_of(body, ClassifyRequest, fields, _sent), _answer, lambda error: as_sent(error, _sent))
    return await run_job(request, runtime, principal, parsed, origin, body.job)


def _sent(name: str) -> str:
    return name.replace("input.texts", "input", 1)


def _texts(given: str | list[str] | list[dict[str, Any]]) -> list[str]:
    """Return the texts, one for each result. Raises InvalidRequest."""
    if isinstance(given, str):
        return [given]
    texts = [one for one in given if isinstance(one, str)]
    parts = [one for one in given if not isinstance(one, str)]
    for number, part in enumerate(parts):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            where = f"input[{number}]"
            raise InvalidRequest(
                f"`{where}`: a classifier reads parts of type text", code="unsupported_parameter", param=where
            )
    return ["\n".join(part["text"] for part in parts)] if parts else texts


def _answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    results = []
    for scored in answer_of(job)["classifications"]:
        scores = {one["label"]: one["score"] for one in scored if one["label"].lower() not in HARMLESS}
        found = {label: score >= FLAGGED_FROM for label, score in scores.items()}
        types = {label: ["text"] for label in scores}
        results.append(
            ModerationResult(
                flagged=any(found.values()),
                categories=found,
                category_scores=scores,
                category_applied_input_types=types,
            )
        )
    model = f"{job.model}@{job.model_version}"
    return Moderation(id=new_id("modr"), model=model, results=results).model_dump()
