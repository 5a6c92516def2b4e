"""Route of OpenAI's embeddings. Each request is stored as a job."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.encoders.embed.embedding_request import EmbeddingRequest, as_sent, embeddings_answer, to_job
from headrace.features.encoders.embed.embedding_views import EmbeddingList
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import is_kept
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.jobs.synchronous import submit_and_wait
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import HeadraceError
from headrace.store.jobs.jobs import Job

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)


@router.post("/embeddings", response_model=EmbeddingList, summary="Create embeddings")
async def create_embeddings(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    body: EmbeddingRequest,
    origin: OriginOf,
) -> Response:
    """Store a job for the inputs; when it has ended, answer with one vector per input, in order.

    If the client disconnects before the end, the job is cancelled, unless `job.on_disconnect` is `continue`.
    """
    order = to_job(body)
    try:
        ended = await submit_and_wait(runtime, request, principal, order, origin, is_kept=is_kept(body.job))
    except HeadraceError as error:
        raise as_sent(error, body) from error
    if ended is None:
        return Response()  # the client is gone
    content = await run_in_threadpool(_encode, ended.job, body)
    return Response(content, media_type="application/json", headers=ended.headers)


def _encode(job: Job, body: EmbeddingRequest) -> bytes:
    """Return the answer as JSON. Runs in a thread, because a large answer takes long to encode."""
    answer: dict[str, Any] = embeddings_answer(job, body.encoding_format)
    return orjson.dumps(answer)
