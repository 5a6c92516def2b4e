"""Routes of the files that jobs made: by a key, and by a signed link without one."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.files import result_links
from headrace.features.files.content_answer import content_answer
from headrace.features.files.file_work import BlobsOf
from headrace.producer_api.access.auth import JobsReader
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.job_routes import JobId
from headrace.producer_api.server.errors import DOCUMENTED

router = APIRouter(tags=["jobs"], route_class=StrictJsonRoute, responses=DOCUMENTED)

MOST_LINK_S = 7 * 86_400

Position = Annotated[
    int, Path(ge=0, lt=result_links.MOST_FILES, description="number of the file, from 0", examples=[0])
]
Tenant = Annotated[
    str,
    Path(pattern=r"^[!-~]{1,128}$", description="the organization", examples=["ten_0197f0c2a3b47d518e9a2b6c7d8e9f01"]),
]
_FILE: dict[int | str, dict[str, Any]] = {200: {"description": "The file", "content": {"application/octet-stream": {}}}}


class LinkObject(BaseModel):
    """A link that opens without a key."""

    object: str = "job.file_link"
    url: str = Field(description="a path on this server")
    expires_at: int


@router.get("/v1/jobs/{job_id}/files/{position}", response_class=Response, responses=_FILE, summary="Get a job's file")
async def get_file(
    request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsReader, job_id: JobId, position: Position
) -> Response:
    """Return a file that the job made, or a range of its bytes. The job's `output.files` lists them.

    404 until the job has succeeded, and after its output was deleted.
    """
    file, media_type = await run_in_threadpool(result_links.find, runtime.db, principal.tenant_id, job_id, position)
    return await content_answer(request, blobs, file, media_type, is_named=True)


@router.get("/v1/jobs/{job_id}/files/{position}/link", response_model=LinkObject, summary="Link to a job's file")
async def get_link(
    runtime: RuntimeOf,
    principal: JobsReader,
    job_id: JobId,
    position: Position,
    seconds: Annotated[int, Query(ge=1, le=MOST_LINK_S, description="how long the link is good")] = 3600,
) -> Response:
    """Return a link that opens the file without a key, for a web page. A new webhook secret ends all links."""
    await run_in_threadpool(result_links.find, runtime.db, principal.tenant_id, job_id, position)
    expires = int(datetime.now(UTC).timestamp()) + seconds
    url = await run_in_threadpool(result_links.new_link, runtime.db, principal.tenant_id, job_id, position, expires)
    return JsonResponse(LinkObject(url=url, expires_at=expires))


@router.get(
    "/results/{tenant_id}/{job_id}/{position}", response_class=Response, responses=_FILE, summary="Open a signed link"
)
async def open_link(
    request: Request,
    runtime: RuntimeOf,
    blobs: BlobsOf,
    tenant_id: Tenant,
    job_id: JobId,
    position: Position,
    expires: Annotated[int, Query(ge=0, lt=1 << 35, description="Unix time at which the link ends")],
    signature: Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="of the rest of the link")],
) -> Response:
    """Return a file that a job made, without a key. 404 for a link that has expired or was changed."""
    await run_in_threadpool(result_links.check_link, runtime.db, tenant_id, job_id, position, expires, signature)
    file, media_type = await run_in_threadpool(result_links.find, runtime.db, tenant_id, job_id, position)
    return await content_answer(request, blobs, file, media_type, is_named=True)
