"""Routes of OpenAI's uploads: a file comes in parts, which are joined when the upload is completed."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.files import uploads
from headrace.features.files.file_form import read_form
from headrace.features.files.file_routes import check_life_s, policed_filename, purpose_of
from headrace.features.files.file_work import BlobsOf
from headrace.features.files.upload_views import (
    NewUpload,
    UploadCompletion,
    UploadObject,
    UploadPartObject,
    part_object,
    upload_object,
)
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.middleware import MOST_PART_BYTES
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import TooLarge

router = APIRouter(prefix="/v1/uploads", tags=["files"], route_class=StrictJsonRoute, responses=DOCUMENTED)

UploadId = Annotated[str, Path(examples=["upload_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {"type": "string", "format": "binary", "description": "the bytes of the part"}
                    },
                }
            }
        },
    }
}


@router.post("", response_model=UploadObject, summary="Begin an upload in parts")
async def create_upload(runtime: RuntimeOf, principal: JobsWriter, body: NewUpload) -> Response:
    """Begin an upload of a file of at most `HEADRACE_MAX_FILE_BYTES`. It takes parts for an hour."""
    settings, tenant_id = runtime.settings, principal.tenant_id
    purpose, given = purpose_of(body.purpose), body.expires_after
    ttl_s = None if given is None else check_life_s(given.anchor, given.seconds, "expires_after")
    if body.bytes > settings.max_file_bytes:
        raise TooLarge(f"`bytes` is over {settings.max_file_bytes}, the most that is accepted", param="bytes")
    filename = await run_in_threadpool(policed_filename, runtime, tenant_id, body.filename)
    upload = await run_in_threadpool(
        uploads.create,
        runtime.db,
        tenant_id,
        num_bytes=body.bytes,
        filename=filename,
        purpose=purpose,
        most_bytes=settings.tenant_stored_bytes,
        ttl_s=ttl_s,
    )
    return JsonResponse(upload_object(upload))


@router.post("/{upload_id}/parts", response_model=UploadPartObject, openapi_extra=_FORM, summary="Add a part")
async def add_part(
    request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsWriter, upload_id: UploadId
) -> Response:
    """Add a part of at most 64 MiB. Parts may come at the same time and in any order."""
    await run_in_threadpool(uploads.get_pending, runtime.db, principal.tenant_id, upload_id)
    most_bytes = min(MOST_PART_BYTES, runtime.settings.max_file_bytes)
    form = await read_form(request, blobs.create, most_bytes, name="data")
    try:
        part = await run_in_threadpool(
            uploads.add_part,
            runtime.db,
            principal.tenant_id,
            upload_id,
            form.draft,
            most_bytes=runtime.settings.tenant_stored_bytes,
        )
    finally:
        await run_in_threadpool(form.draft.drop)
    return JsonResponse(part_object(part))


@router.post("/{upload_id}/complete", response_model=UploadObject, summary="Complete an upload")
async def complete_upload(
    runtime: RuntimeOf, blobs: BlobsOf, principal: JobsWriter, upload_id: UploadId, body: UploadCompletion
) -> Response:
    """Join the parts into a file. Their size together must be the upload's `bytes`.

    An upload that is already complete is returned with its file.
    """
    upload, file = await run_in_threadpool(
        uploads.complete,
        runtime.db,
        blobs,
        principal.tenant_id,
        upload_id,
        body.part_ids,
        md5=body.md5,
        most_bytes=runtime.settings.tenant_stored_bytes,
    )
    return JsonResponse(upload_object(upload, file))


@router.post("/{upload_id}/cancel", response_model=UploadObject, summary="Cancel an upload")
async def cancel_upload(runtime: RuntimeOf, principal: JobsWriter, upload_id: UploadId) -> Response:
    """Delete the parts. No more parts are accepted."""
    upload = await run_in_threadpool(uploads.cancel, runtime.db, principal.tenant_id, upload_id)
    return JsonResponse(upload_object(upload))
