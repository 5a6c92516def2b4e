"""Route of OpenAI's moderations, answered by the policy's classifier. Nothing is stored."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.policy.classification.classifiers import FLAGGED_FROM, Classifier, WordListClassifier
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.ids import new_id
from headrace.store.payloads.strict_model import MAX_TEXT_CHARS, Body

router = APIRouter(prefix="/v1/moderations", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_CLASSIFIER: Classifier = WordListClassifier()
_ALIASES = frozenset(
    ["omni-moderation-latest", "omni-moderation-2024-09-26", "text-moderation-latest", "text-moderation-stable"]
)
MAX_TEXTS = 128


class ModerationPart(Body):
    """A part of one input; only text is supported."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None


class ModerationRequest(Body):
    """The body of ``POST /v1/moderations``."""

    model_config = ConfigDict(
        extra="allow", frozen=True, json_schema_extra={"examples": [{"input": "I love rivers."}, {"input": ["a", "b"]}]}
    )

    input: str | list[str] | list[ModerationPart] = Field(
        description="a text, several texts with one result each, or the parts of one text"
    )
    model: str = Field("omni-moderation-latest", description="the classifier's name, or one of OpenAI's model names")


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


@router.post("", response_model=Moderation, summary="Classify texts")
async def create_moderation(principal: JobsWriter, body: ModerationRequest) -> Response:
    """Return OpenAI's categories for each text."""
    if body.model not in _ALIASES and body.model != _CLASSIFIER.name:
        raise NotFound(
            f"no classifier of that name: use {_CLASSIFIER.name} or omni-moderation-latest",
            code="model_not_found",
            param="model",
        )
    principal.check_model(_CLASSIFIER.name)
    texts = _texts(body.input)

    results = await run_in_threadpool(lambda: [_result(text) for text in texts])
    return JsonResponse(Moderation(id=new_id("modr"), model=_CLASSIFIER.name, results=results))


def _texts(given: str | list[str] | list[ModerationPart]) -> list[str]:
    """Return the texts, one per result. Raises InvalidRequest."""
    texts = [given] if isinstance(given, str) else [one for one in given if isinstance(one, str)]
    parts = [] if isinstance(given, str) else [one for one in given if isinstance(one, ModerationPart)]
    if parts:
        texts = ["\n".join(_text_of(number, part) for number, part in enumerate(parts))]
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise InvalidRequest(f"`input` needs 1 to {MAX_TEXTS} texts", param="input")
    if sum(map(len, texts)) > MAX_TEXT_CHARS:
        raise InvalidRequest(f"`input` may have {MAX_TEXT_CHARS} characters in all", param="input")
    return texts


def _text_of(number: int, part: ModerationPart) -> str:
    if part.type == "text" and part.text is not None:
        return part.text
    where = f"input[{number}]"
    raise InvalidRequest(
        f"`{where}`: the classifier reads parts of type text only", code="unsupported_parameter", param=where
    )


def _result(text: str) -> ModerationResult:
    scores: dict[str, Any] = dict(_CLASSIFIER.classify(text))
    categories = {category: score >= FLAGGED_FROM for category, score in scores.items()}
    return ModerationResult(
        flagged=any(categories.values()),
        categories=categories,
        category_scores=scores,
        category_applied_input_types={category: ["text"] for category in categories},
    )
