"""The API of the task ``rerank``: ``POST /v1/rerank`` in the shape that Cohere and Jina share.

Bounds are in ``store.tasks.rerank`` and the model's files. An error about the job's field is renamed to the field that
the caller sent.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from producer_api.access.auth import JobsWriter
from producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from producer_api.http.views import ObjectResponse
from producer_api.openai.chat_answer import answer_of
from producer_api.openai.foreign_fields import ENCODING_INSTEAD, FOREIGN_ENCODING, refuse_unsupported
from producer_api.openai.request_fields import (
    CLASSES,
    JobOptions,
    MetadataText,
    ServiceTier,
    is_kept,
    job_fields,
    refuse_near_misses,
)
from producer_api.openai.synchronous import submit_and_wait
from producer_api.server.errors import DOCUMENTED, from_validation
from producer_api.tasks.task_body import as_sent
from producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from store.errors import HeadraceError
from store.jobs.jobs import Job
from store.payloads.strict_model import Body, Strict
from store.tasks.rerank import MAX_DOCUMENTS, RERANK, RerankRequest

router = APIRouter(prefix="/v1", tags=["rerank"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class RerankDocument(Strict):
    """A document as an object."""

    text: str = Field(description="the document's text")


def _as_object(given: object) -> object:
    """Return a document that was given as a text in the form of an object."""
    if not isinstance(given, str | Mapping | RerankDocument):
        raise ValueError("a document is a text, or an object with a `text`")
    return {"text": given} if isinstance(given, str) else given


_DOCUMENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]},
    ]
}
Document = Annotated[RerankDocument, BeforeValidator(_as_object), WithJsonSchema(_DOCUMENT_SCHEMA)]


class RerankBody(Body):
    """The body of ``POST /v1/rerank``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "reranker", "query": "Where is the mill?", "documents": ["a mill on the river", "bread"]}
            ]
        },
    )

    model: str = Field(description="which model: `name`, `name@alias` or `name@3`")
    query: str = Field(description="the text that the documents are compared with")
    documents: Annotated[
        tuple[Document, ...],
        Field(min_length=1, max_length=MAX_DOCUMENTS, description="texts, or objects with a `text`"),
    ]
    top_n: int | None = Field(None, description="so many of the best results are returned; without it all")
    return_documents: bool = Field(False, description="show each result's document beside its score")
    user: str | None = Field(None, description="your own user, for whom the usage is counted")
    metadata: dict[str, MetadataText] | None = Field(None, description="your own keys and values")
    service_tier: ServiceTier | None = Field(None, description="auto and priority go first, default next, flex last")
    job: JobOptions | None = Field(None, description="options of the job behind the answer")


class RerankResultObject(BaseModel):
    """One document's score."""

    index: int = Field(description="the document's place in the request, from 0")
    relevance_score: float = Field(description="how well the document fits the query; more is better")
    document: RerankDocument | None = Field(None, description="the document, with `return_documents`")


class RerankUsage(BaseModel):
    """What the scores cost: the tokens of all pairs of the query and a document."""

    prompt_tokens: int = Field(description="tokens of all pairs")
    total_tokens: int = Field(description="the same")


class RerankList(BaseModel):
    """The results, the best first."""

    object: Literal["list"] = "list"
    id: str = Field(description="the job's id")
    model: str = Field(description="the model version, as `name@3`")
    results: list[RerankResultObject] = Field(description="by falling score")
    usage: RerankUsage = Field(description="what it cost")


def to_job(asked: RerankBody) -> RerankRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    refuse_unsupported(asked, FOREIGN_ENCODING, ENCODING_INSTEAD)
    refuse_near_misses(asked, FOREIGN_ENCODING)
    body = {
        "task": RERANK.name,
        "model": asked.model,
        "input": {"query": asked.query, "documents": [document.text for document in asked.documents]},
        "top_n": asked.top_n,
        "service_class": CLASSES[asked.service_tier],
        "metadata": asked.metadata or {},
        "user": asked.user or None,
        **job_fields(asked.job),
    }
    try:
        return RerankRequest.model_validate(body)
    except ValidationError as error:
        raise as_sent(from_validation(error.errors(include_input=False))) from error


def rerank_answer(job: Job, asked: RerankBody) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other.

    Documents are those that the model was given: where a policy has replaced values, they have its placeholders.
    """
    results = [dict(result) for result in answer_of(job)["results"]]
    documents = job.payload.get("input", {}).get("documents", []) if asked.return_documents else []
    for result in results:
        if result["index"] < len(documents):
            result["document"] = {"text": documents[result["index"]]}
    tokens = int((job.usage or {}).get("input_tokens", job.input_tokens))
    return {
        "object": "list",
        "id": job.id,
        "model": f"{job.model}@{job.model_version}",
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


@router.post("/rerank", response_model=RerankList, summary="Score documents by a query")
async def rerank(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: RerankBody, origin: OriginOf
) -> Response:
    """Store a job for the query and its documents, and answer with the best documents when it has ended.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    order = to_job(body)
    try:
        ended = await submit_and_wait(runtime, request, principal, order, origin, is_kept=is_kept(body.job))
    except HeadraceError as error:
        raise as_sent(error) from error
    if ended is None:
        return Response()  # the caller has left
    return ObjectResponse(rerank_answer(ended.job, body), headers=ended.headers)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    asked = RerankBody.model_validate(body)
    return ParsedRequest(to_job(asked), lambda job: rerank_answer(job, asked), as_sent)


RERANK_ROUTES = TaskRoutes(RERANK, (router,), {"/v1/rerank": _parse})
