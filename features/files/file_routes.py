"""Routes of OpenAI's files: upload, retrieve, list, download, delete. Contents are in the blob storage."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.files import files
from headrace.features.files.content_answer import content_answer
from headrace.features.files.file_form import read_form
from headrace.features.files.file_views import FileDeleted, FileList, FileObject, file_list, file_object
from headrace.features.files.file_work import BlobsOf
from headrace.features.files.files import UPLOADED, File, Purpose
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictJsonRoute, responses=DOCUMENTED)

FileId = Annotated[str, Path(examples=["file_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]

SHORTEST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * 86_400
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "the file itself"},
                        "purpose": {
                            "type": "string",
                            "enum": sorted(UPLOADED),
                            "description": "what the file is for; `batch` for a batch's requests",
                        },
                        "expires_after[anchor]": {
                            "type": "string",
                            "enum": ["created_at"],
                            "description": "from when the seconds are counted",
                        },
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": SHORTEST_LIFE_S,
                            "maximum": LONGEST_LIFE_S,
                            "description": "how long the file is kept",
                        },
                    },
                }
            }
        },
    }
}


@router.post("", response_model=FileObject, openapi_extra=_FORM, summary="Upload a file")
async def create_file(request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsWriter) -> Response:
    """Store a file of at most `HEADRACE_MAX_FILE_BYTES`; a tenant has `HEADRACE_TENANT_STORED_BYTES` in total."""
    form = await read_form(request, blobs.create, runtime.settings.max_file_bytes)
    try:
        purpose, ttl_s = purpose_of(form.fields.get("purpose")), _life_s(form.fields)
        filename = await run_in_threadpool(policed_filename, runtime, principal.tenant_id, form.filename)
        file = await run_in_threadpool(
            files.create,
            runtime.db,
            principal.tenant_id,
            form.draft,
            filename=filename,
            purpose=purpose,
            most_bytes=runtime.settings.tenant_stored_bytes,
            ttl_s=ttl_s,
        )
    finally:
        await run_in_threadpool(form.draft.drop)
    return JsonResponse(file_object(file))


def policed_filename(runtime: Runtime, tenant_id: str, filename: str) -> str:
    """Return the file's name after the tenant's policy for all models."""
    found = runtime.guards.in_force(tenant_id)
    if found is None:
        return filename
    return str(found.fields({"filename": filename}, "file")["filename"])[:255]


def purpose_of(given: str | None) -> Purpose:
    """Return the purpose of an upload; raise InvalidRequest if it is none of those."""
    if given not in UPLOADED:
        fault = "is required" if given is None else "is unknown"
        raise InvalidRequest(f"`purpose` {fault}: one of {', '.join(sorted(UPLOADED))}", param="purpose")
    return Purpose(given)


def _life_s(fields: Mapping[str, str]) -> float | None:
    """Return the lifetime in seconds from ``expires_after``; None without one."""
    anchor, asked = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and asked is None:
        return None
    return check_life_s(anchor, int(asked) if asked and re.fullmatch(r"\d{1,9}", asked) else None, "expires_after")


def check_life_s(anchor: object, given_s: int | None, param: str) -> float:
    """Return the seconds of an ``expires_after``; raise InvalidRequest if it is invalid."""
    if anchor != "created_at":
        raise InvalidRequest(f"`{param}.anchor` must be created_at", param=f"{param}.anchor")
    if given_s is None or not SHORTEST_LIFE_S <= given_s <= LONGEST_LIFE_S:
        raise InvalidRequest(
            f"`{param}.seconds` must be from {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}", param=f"{param}.seconds"
        )
    return float(given_s)


@router.get("", response_model=FileList, summary="List files")
async def list_files(
    runtime: RuntimeOf,
    principal: JobsReader,
    purpose: Purpose | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
    order: Literal["desc", "asc"] = "desc",
) -> Response:
    """Return the tenant's files, newest first by default."""

    def read(db: Database) -> FileList:
        found = files.list_files(
            db,
            principal.tenant_id,
            purpose=purpose,
            limit=limit + 1,
            after=after,
            descending=order == "desc",
        )
        return file_list(found, limit)

    return JsonResponse(await runtime.lists.read(principal, read))


@router.get("/{file_id}", response_model=FileObject, summary="Retrieve a file")
async def get_file(runtime: RuntimeOf, principal: JobsReader, file_id: FileId) -> Response:
    """Return the file's metadata."""
    return JsonResponse(file_object(await _get(runtime, principal.tenant_id, file_id)))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"description": "The file as it was uploaded", "content": {"application/octet-stream": {}}}},
    summary="Download a file",
)
async def get_content(
    request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsReader, file_id: FileId
) -> Response:
    """Return the file's content, or a range of its bytes."""
    file = await _get(runtime, principal.tenant_id, file_id)
    return await content_answer(request, blobs, file, "application/octet-stream", is_named=False)


@router.delete("/{file_id}", response_model=FileDeleted, summary="Delete a file")
async def delete_file(runtime: RuntimeOf, principal: JobsWriter, file_id: FileId) -> Response:
    """Delete the file. A batch that uses it continues."""
    await run_in_threadpool(files.delete, runtime.db, principal.tenant_id, file_id, actor=principal.key_id)
    return JsonResponse(FileDeleted(id=file_id))


async def _get(runtime: Runtime, tenant_id: str, file_id: str) -> File:
    return await run_in_threadpool(files.get, runtime.db, tenant_id, file_id)
