"""The API of the task ``score``: ``POST /v1/score`` in the shape of vLLM."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.encoding_body import EncodingAnswer, EncodingBody, encoding_answer, encoding_order
from headrace.features.encoders.score.task import MAX_SCORE_PAIRS, SCORE, ScoreRequest
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import as_sent
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job

router = APIRouter(prefix="/v1", tags=["score"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_TEXT = {"type": "string", "minLength": 1}
_TEXTS: dict[str, Any] = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_SCORE_PAIRS}]
}


class ScoreBody(EncodingBody):
    """The body of ``POST /v1/score``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "reranker", "text_1": "Where is the mill?", "text_2": ["a mill on the river", "bread"]},
            ]
        },
    )

    text_1: Annotated[Any, WithJsonSchema(_TEXTS)] = Field(description="a text, or as many as in `text_2`")
    text_2: Annotated[Any, WithJsonSchema(_TEXTS)] = Field(description="the text or texts to compare with `text_1`")


class ScoreObject(BaseModel):
    """The score of one pair."""

    object: Literal["score"] = "score"
    index: int = Field(description="the pair's place, from 0")
    score: float = Field(description="a reranker's relevance score, or the cosine of two vectors; more is closer")


class ScoreList(EncodingAnswer):
    """The score of each pair, in order."""

    created: int = Field(description="when the job was accepted, in Unix seconds")
    data: list[ScoreObject] = Field(description="one for each pair, in order")


def _as_list(given: object) -> object:
    return [given] if isinstance(given, str) else given


def to_job(asked: ScoreBody) -> ScoreRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    texts = {"text_1": _as_list(asked.text_1), "text_2": _as_list(asked.text_2)}
    return encoding_order(asked, ScoreRequest, {"task": SCORE.name, "input": texts}, _sent(asked))


def _sent(asked: ScoreBody) -> Any:
    """Return what renames a field of the job: a text that was sent alone has no index."""
    alone = [name for name in ("text_1", "text_2") if isinstance(getattr(asked, name), str)]

    def rename(name: str) -> str:
        found = "text_1" if name == "input" else name.removeprefix("input.")
        return next((found.replace(f"{one}[0]", one, 1) for one in alone if found.startswith(one)), found)

    return rename


def score_answer(job: Job) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other."""
    output = answer_of(job)
    data = [{"object": "score", "index": index, "score": score} for index, score in enumerate(output["scores"])]
    return encoding_answer(job, output, {"created": int(job.created_at.timestamp()), "data": data})


@router.post("/score", response_model=ScoreList, summary="Score pairs of texts")
async def score(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: ScoreBody, origin: OriginOf
) -> Response:
    """Store a job for the pairs, and answer with their scores when it has ended.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: ScoreBody) -> ParsedRequest:
    def complain(error: HeadraceError) -> HeadraceError:
        return as_sent(error, _sent(asked))

    return ParsedRequest(to_job(asked), score_answer, complain)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(ScoreBody.model_validate(body))


PART = TaskRoutes(SCORE, (router,), {"/v1/score": _parse})
