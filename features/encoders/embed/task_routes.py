"""The API of the task ``embed``: OpenAI's embeddings."""

from collections.abc import Mapping
from typing import Any

from headrace.features.encoders.embed import embedding_routes
from headrace.features.encoders.embed.embedding_request import EmbeddingRequest, as_sent, embeddings_answer, to_job
from headrace.features.encoders.embed.task import EMBED
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes


def _parse(body: Mapping[str, Any]) -> ParsedRequest:
    request = EmbeddingRequest.model_validate(body)
    return ParsedRequest(
        to_job(request),
        lambda job: embeddings_answer(job, request.encoding_format),
        lambda error: as_sent(error, request),
    )


PART = TaskRoutes(EMBED, (embedding_routes.router,), {"/v1/embeddings": _parse})
