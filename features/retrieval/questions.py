"""What flows need of vector stores: the version that embeds the question of a step that searches.

The stores are looked up as the tenant, so that row-level security binds the look-up; the search of the worker names the
tenant too.
"""

from collections.abc import Collection
from typing import Any

from headrace.features.flows.retrieval_steps import QuestionSearch
from headrace.features.retrieval import vector_stores
from headrace.features.retrieval.attribute_filters import read_filter
from headrace.producer_api.submission.submission_hook import SubmissionParts
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.payloads.retrieval import Retrieval
from headrace.store.registry.models import ModelVersion, queue_name

QUERY_PROMPTS = ("query",)
"""Names that models of sentence-transformers give to the text before a question."""


def check_retrieval(found: Retrieval, field: str) -> None:
    """Raise InvalidRequest for filters that cannot be followed, and for a rerank model. ``field``: for the message."""
    read_filter(found.filters, f"{field}.filters")
    if found.ranking_options is not None and found.ranking_options.reranker is not None:
        raise InvalidRequest(
            "passages for an answer are not reranked: leave `ranker` out, or send `auto`",
            code="unsupported_parameter",
            param=f"{field}.ranking_options.ranker",
        )


def embedding_of(
    parts: SubmissionParts, tenant_id: str, wanted: Retrieval, field: str
) -> tuple[ModelVersion, dict[str, Any]]:
    """Return the version that embeds questions for these stores, and the fields of its requests. Blocks.

    Raises InvalidRequest, NotFound, Conflict, ModelLoadError. ``field``: for the messages.
    """
    version = _version_of(parts, tenant_id, wanted, field)
    prompt = query_prompt_name(parts.catalog.task_settings(version).prompts)
    return version, {"truncate": True} if prompt is None else {"truncate": True, "prompt_name": prompt}


def query_prompt_name(prompts: Collection[str]) -> str | None:
    """Return the name of a model's prompt before a question to a vector store; None: it has none for them."""
    return next((name for name in QUERY_PROMPTS if name in prompts), None)


def _version_of(parts: SubmissionParts, tenant_id: str, wanted: Retrieval, field: str) -> ModelVersion:
    names = set()
    for number, store_id in enumerate(wanted.vector_store_ids):
        try:
            store = vector_stores.find(parts.db, tenant_id, store_id)
        except NotFound as error:
            error.param = f"{field}.vector_store_ids[{number}]"
            raise
        vector_stores.touch(parts.db, tenant_id, store_id)
        names.add(queue_name(store.model, store.model_version))
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        raise InvalidRequest(
            f"the stores have vectors of different models ({listed}): name stores of one",
            param=f"{field}.vector_store_ids",
        )
    (name,) = names
    try:
        return parts.catalog.resolve(name)
    except NotFound:
        message = f"{name}, which makes the vectors of this store, is retired: add its files to a new store"
        raise Conflict(message, param=f"{field}.vector_store_ids") from None


PART = QuestionSearch(check_retrieval, embedding_of)
