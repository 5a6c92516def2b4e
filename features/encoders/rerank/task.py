"""The task ``rerank``: a query and documents in, a relevance score for each document out."""

from typing import Annotated, Literal

from pydantic import Field

from headrace.features.encoders.encoder_fields import Cuts, Truncate
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.payloads.strict_model import Strict, Text
from headrace.store.tasks.task_spec import TaskSpec

MAX_DOCUMENTS = 1000

Documents = Annotated[
    tuple[Text, ...],
    Field(min_length=1, max_length=MAX_DOCUMENTS, description="the texts that are scored"),
]


class RerankInput(Strict):
    """A query and the documents that may answer it."""

    query: Text = Field(description="the text that the documents are compared with")
    documents: Documents


class RerankRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for relevance scores."""

    task: Literal["rerank"]
    input: RerankInput
    top_n: int | None = Field(None, ge=1, description="so many of the best results are returned; without it all")
    truncate: Truncate = False


class RerankPayload(Strict):
    """The part of a rerank request that the worker needs, as stored in the job row."""

    input: RerankInput
    top_n: int | None = Field(None, ge=1, description="so many of the best results are returned; without it all")
    truncate: Truncate | None = None


class RerankResult(Strict):
    """The score of the document at ``index`` of the request."""

    index: int
    relevance_score: float


class RerankOutput(Strict):
    """The output of a rerank job: the results by falling score, at most ``top_n``."""

    results: tuple[RerankResult, ...]
    truncated: Cuts = None


RERANK = TaskSpec(
    name="rerank",
    request=RerankRequest,
    output=RerankOutput,
    runner="cross-encoder",
    fake_runner="fake-cross-encoder",
    urls=("/v1/rerank",),
    purpose="scores documents and makes no text: use /v1/rerank, or the task rerank",
    has_many_texts=True,
    url_example={"query": "Where is the mill?", "documents": ["a mill on the river", "bread"]},
    examples={
        "scores": {
            "summary": "Scores for documents",
            "value": {
                "task": "rerank",
                "model": "reranker",
                "input": {"query": "Where is the mill?", "documents": ["a mill on the river", "bread"]},
                "top_n": 1,
            },
        },
    },
)

PART = RERANK
