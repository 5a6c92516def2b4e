"""The API of the task ``rerank``: ``POST /v1/rerank`` in the shape that Cohere and Jina share.

Bounds are in ``task`` and the model's files. An error about the job's field is renamed to the field that the caller
sent.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.encoding_body import EncodingAnswer, EncodingBody, encoding_answer, encoding_order
from headrace.features.encoders.rerank.task import MAX_DOCUMENTS, RERANK, RerankRequest
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.tasks.run_job import run_job
from headrace.producer_api.tasks.task_body import as_sent
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.strict_model import Strict

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


class RerankBody(EncodingBody):
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

    query: str = Field(description="the text that the documents are compared with")
    documents: Annotated[
        tuple[Document, ...],
        Field(min_length=1, max_length=MAX_DOCUMENTS, description="texts, or objects with a `text`"),
    ]
    top_n: int | None = Field(None, description="so many of the best results are returned; without it all")
    return_documents: bool = Field(False, description="show each result's document beside its score")


class RerankResultObject(BaseModel):
    """One document's score."""

    index: int = Field(description="the document's place in the request, from 0")
    relevance_score: float = Field(description="how well the document fits the query; more is better")
    document: RerankDocument | None = Field(None, description="the document, with `return_documents`")


class RerankList(EncodingAnswer):
    """The results, the best first."""

    results: list[RerankResultObject] = Field(description="by falling score")


def to_job(asked: RerankBody) -> RerankRequest:
    """Return the job that the request asks for; raise InvalidRequest that names the field as the caller spelled it."""
    fields = {
        "task": RERANK.name,
        "input": {"query": asked.query, "documents": [document.text for document in asked.documents]},
        "top_n": asked.top_n,
    }
    return encoding_order(asked, RerankRequest, fields)


def rerank_answer(job: Job, asked: RerankBody) -> dict[str, Any]:
    """Return the answer of a job that has succeeded; raise JobUnanswered for any other.

    Documents are those that the model was given: where a policy has replaced values, they have its placeholders.
    """
    output = answer_of(job)
    results = [dict(result) for result in output["results"]]
    documents = job.payload.get("input", {}).get("documents", []) if asked.return_documents else []
    for result in results:
        if result["index"] < len(documents):
            result["document"] = {"text": documents[result["index"]]}
    return encoding_answer(job, output, {"results": results})


@router.post("/rerank", response_model=RerankList, summary="Score documents by a query")
async def rerank(
    request: Request, runtime: RuntimeOf, principal: JobsWriter, body: RerankBody, origin: OriginOf
) -> Response:
    """Store a job for the query and its documents, and answer with the best documents when it has ended.

    A caller who leaves before the end cancels the job, unless `job.on_disconnect` is `continue`.
    """
    return await run_job(request, runtime, principal, _parsed(body), origin, body.job)


def _parsed(asked: RerankBody) -> ParsedRequest:
    return ParsedRequest(to_job(asked), lambda job: rerank_answer(job, asked), as_sent)


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    return _parsed(RerankBody.model_validate(body))


PART = TaskRoutes(RERANK, (router,), {"/v1/rerank": _parse})
