"""A search in a vector store: the vectors of the questions as a job, the search, and the order of a rerank model."""

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from headrace.features.encoders.embed.task import EmbedRequest
from headrace.features.encoders.rerank.task import RerankRequest
from headrace.features.retrieval import search, vector_stores
from headrace.features.retrieval.adding_files import store_version
from headrace.features.retrieval.attribute_filters import AttributeFilter, read_filter
from headrace.features.retrieval.passages import unit_vector
from headrace.features.retrieval.questions import query_prompt_name
from headrace.features.retrieval.search import FoundPassage, Query
from headrace.features.retrieval.store_bodies import SearchBody
from headrace.features.retrieval.vector_stores import VectorStore
from headrace.producer_api.http.requests import OriginOf
from headrace.producer_api.jobs.synchronous import submit_and_wait
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.payloads.retrieval import HybridWeights, RankingOptions
from headrace.store.registry.models import queue_name
from headrace.store.tenants.api_keys import Principal

NUM_RERANKED = 50
"""The best passages of a search that a rerank model orders."""


async def search_store(
    runtime: Runtime, request: Request, principal: Principal, store_id: str, body: SearchBody, origin: OriginOf
) -> list[FoundPassage] | None:
    """Return the passages that answer the questions, the best first; None if the caller has left.

    Raises what a submission raises, NotFound, InvalidRequest, JobUnanswered, CannotOpen.
    """
    if body.rewrite_query:
        message = "`rewrite_query` is not supported: send the query as it is to be searched, and leave this out"
        raise InvalidRequest(message, code="unsupported_parameter", param="rewrite_query")
    asked = read_filter(body.filters)
    options = body.ranking_options or RankingOptions(ranker=None, score_threshold=None, hybrid_search=None)
    reranker = options.reranker
    # A retry of the request must not find a job of it that was cached as the whole answer.
    origin = replace(origin, idempotency_key=None, fingerprint="", is_retry=False)
    store = await run_in_threadpool(vector_stores.find, runtime.db, principal.tenant_id, store_id)
    vectors = await _vectors(runtime, request, principal, store, body, origin)
    if vectors is None:
        return None
    limit = NUM_RERANKED if reranker else body.max_num_results
    found = await runtime.submissions.tenant_threads.run(
        principal.tenant_id, lambda: _found(runtime, principal, store, body, vectors, limit, asked, options)
    )
    if reranker and found:
        ordered = await _reranked(runtime, request, principal, reranker, body, found, origin)
        if ordered is None:
            return None
        found = ordered
    least = options.score_threshold or 0.0
    return [one for one in found if one.score >= least][: body.max_num_results]


async def _vectors(
    runtime: Runtime, request: Request, principal: Principal, store: VectorStore, body: SearchBody, origin: Origin
) -> list[tuple[float, ...]] | None:
    """Return a vector of length 1 for each question."""
    version = await run_in_threadpool(store_version, runtime, principal, store)
    prompt = query_prompt_name(runtime.catalog.task_settings(version).prompts)
    order = EmbedRequest.model_validate(
        {
            "task": "embed",
            "model": queue_name(store.model, store.model_version),
            "input": {"texts": body.queries},
            "truncate": True,
            "prompt_name": prompt,
            "service_class": ServiceClass.INTERACTIVE,
        }
    )
    try:
        ended = await submit_and_wait(runtime, request, principal, order, origin, is_kept=False)
    except HeadraceError as error:
        if (error.param or "").startswith("input"):
            error.param = "query"
        raise
    if ended is None:
        return None
    return [unit_vector(b64decode(one)) for one in answer_of(ended.job)["embeddings"]]


def _found(
    runtime: Runtime,
    principal: Principal,
    store: VectorStore,
    body: SearchBody,
    vectors: Sequence[tuple[float, ...]],
    limit: int,
    attributes: AttributeFilter | None,
    options: RankingOptions,
) -> list[FoundPassage]:
    """Return the best passages; of several questions each passage has its best score. Blocks."""
    weights = options.hybrid_search or HybridWeights(embedding_weight=1.0, text_weight=1.0)
    best: dict[tuple[str, int], FoundPassage] = {}
    for words, vector in zip(body.queries, vectors, strict=True):
        query = Query(
            store_id=store.id,
            vector=vector,
            words=words,
            limit=limit,
            attributes=attributes,
            vector_weight=weights.embedding_weight,
            word_weight=weights.text_weight,
        )
        for one in search.search(runtime.db, principal.tenant_id, query):
            key = (one.file_id, one.position)
            if key not in best or best[key].score < one.score:
                best[key] = one
    vector_stores.touch(runtime.db, principal.tenant_id, store.id)
    return sorted(best.values(), key=lambda one: (-one.score, one.file_id, one.position))[:limit]


async def _reranked(
    runtime: Runtime,
    request: Request,
    principal: Principal,
    model: str,
    body: SearchBody,
    found: Sequence[FoundPassage],
    origin: Origin,
) -> list[FoundPassage] | None:
    """Return the passages in the order of a rerank model, with its scores; None if the caller has left."""
    order = RerankRequest.model_validate(
        {
            "task": "rerank",
            "model": model,
            "input": {"query": " ".join(body.queries), "documents": [one.passage.text for one in found]},
            "truncate": True,
            "service_class": ServiceClass.INTERACTIVE,
        }
    )
    try:
        ended = await submit_and_wait(runtime, request, principal, order, origin, is_kept=False)
    except HeadraceError as error:
        if error.param == "model":
            error.param = "ranking_options.ranker"
        raise
    if ended is None:
        return None
    results = answer_of(ended.job)["results"]
    return [replace(found[one["index"]], score=min(1.0, max(0.0, one["relevance_score"]))) for one in results]
