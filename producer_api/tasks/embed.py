"""The API of the task ``embed``: OpenAI's embeddings."""

from collections.abc import Mapping
from typing import Any

from headrace.producer_api.tasks import embedding_routes
from headrace.producer_api.tasks.embedding_request import EmbeddingRequest, as_sent, embeddings_answer, to_job
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.store.tasks.embed import EMBED


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    request = EmbeddingRequest.model_validate(body)
    return ParsedRequest(
        to_job(request),
        lambda job: embeddings_answer(job, request.encoding_format),
        lambda error: as_sent(error, request),
    )


EMBED_ROUTES = TaskRoutes(EMBED, (embedding_routes.router,), {"/v1/embeddings": _parse})
