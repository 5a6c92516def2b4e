"""The API of the task ``token_classify``: entities as transformers' pipeline finds them."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.classify.task_routes import sent_input
from headrace.features.encoders.encoding_body import EncodingAnswer, EncodingBody, encoding_answer, encoding_order
from headrace.features.encoders.token_classify.task import (
    MAX_TOKEN_CLASSIFY_INPUTS,
    TOKEN_CLASSIFY,
    Aggregation,
    Entity,
    TokenClassifyRequest,
)
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
_INPUT_SCHEMA: dict[str, Any] = {
    "title": "Input",
    "description": "a text, or a list of texts",
    "anyOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": MAX_TOKEN_CLASSIFY_INPUTS, "items": _TEXT}],
}


class TokenClassifyBody(EncodingBody):
    """The body of ``POST /v1/token_classify``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={"examples": [{"model": "ner", "input": "Ann lives by the mill"}]},
    )

    input: Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)]
    aggregation_strategy: Aggregation = Field(
        Aggregation.SIMPLE, description="how tokens become entities, as in transformers' pipeline"
    )
    ignore_labels: list[str] = Field(["O"], description="labels that are left out of the answer")


class TextEntities(BaseModel):
    """The entities of one text."""

    index: int = Field(description="the text's place in the request, from 0")
    entities: list[Entity] = Field(description="in the order of the text")


class EntityList(EncodingAnswer):
    """The entities of each text, in order."""

    data: list[TextEntities] = Field(description="one for each text, in order")


def to_job(asked: TokenClassifyBody) -> TokenClassifyRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    fields = {
        "task": TOKEN_CLASSIFY.name,
        "input": {"texts": [asked.input] if isinstance(asked.input, str) else asked.input},
        "aggregation_strategy": asked.aggregation_strategy,
        "ignore_labels": asked.ignore_labels,
    }
    return encoding_order(asked, TokenClassifyRequest, fields, lambda name: sent_input(name, asked.input))


def token_classify_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    output = answer_of(job)
    data = [{"index": index, "entities": entities} for index, entities in enumerate(output["entities"])]
    return encoding_answer(job, output, {"data": data})


@router.post("/token_classify", response_model=EntityList, summary="Find entities in texts")
async def token_classify(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: TokenClassifyBody, origin: OriginOf
) -> Response:
    """Store a job for the texts, and answer with their entities when it has ended.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: TokenClassifyBody) -> ParsedRequest:
    def complain(error: HeadraceError) -> HeadraceError:
        return as_sent(error, lambda name: sent_input(name, asked.input))

    return ParsedRequest(to_job(asked), token_classify_answer, complain)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(TokenClassifyBody.model_validate(body))


PART = TaskRoutes(TOKEN_CLASSIFY, (router,), {"/v1/token_classify": _parse})
