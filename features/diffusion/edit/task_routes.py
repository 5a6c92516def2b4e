"""The API of the task ``image_edit``: OpenAI's ``POST /v1/images/edits``, a form or JSON, whole or as a stream."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson
from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.diffusion.edit.task import IMAGE_EDIT, MOST_FORM_BYTES, ImageEditRequest
from headrace.features.diffusion.form_fields import FIELD_BYTES, Files, read_fields, validated
from headrace.features.diffusion.openai_images import (
    ImagesBody,
    ImagesResponse,
    line_of,
    order_fields,
    parsed,
    respond,
)
from headrace.features.diffusion.pictures import Strength
from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs
from headrace.features.files.file_routes import policed_filename
from headrace.features.files.file_work import BlobsOf
from headrace.features.files.files import Purpose
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.requests import OriginHeadersOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.producer_api.tasks.task_routes import ParsedRequest, TaskRoutes
from headrace.prompts.vision.pictures import check_header
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictJsonRoute, responses=DOCUMENTED)

# A picture goes with its job's input, if that is sooner.
_PICTURE_TTL_S: Final = 86_400
_MOST_BYTES: Final = MOST_FORM_BYTES + FIELD_BYTES


class EditBody(ImagesBody):
    """The fields of an edit. A form has the files ``image`` and ``mask`` in their place."""

    images: list[dict[str, str]] | None = Field(
        None, description='in JSON: one picture, `{"image_url": "data:…"}` or `{"file_id": "…"}`'
    )
    mask: dict[str, str] | None = Field(None, description="in JSON: as a picture")
    strength: Strength = None


def _schema() -> dict[str, Any]:
    hidden = ("images", "mask", "job", "metadata")
    fields = {name: one for name, one in EditBody.model_json_schema()["properties"].items() if name not in hidden}
    file = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP or GIF"}
    form = {
        "type": "object",
        "required": ["image", "model", "prompt"],
        "properties": {"image": file, "mask": file, **fields},
    }
    example = {"image": "(the bytes of mill.png)", "model": "painter", "prompt": "the mill in winter"}
    content = {"multipart/form-data": {"schema": form, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/edits", response_model=ImagesResponse, openapi_extra=_schema(), summary="Change a picture")
async def edit_image(
    request: Request, runtime: RuntimeOf, blobs: BlobsOf, principal: JobsWriter, headers: OriginHeadersOf
) -> Response:
    """Store a job that changes the picture; when it has ended, answer with what was made. With `stream` as events.

    A caller who leaves before the end cancels the job, unless `job[on_disconnect]` is `continue`.
    """
    async with read_fields(request, _MOST_BYTES, 2) as (given, content, uploads):
        asked = validated(EditBody, given)
        sent = await _read(uploads) if uploads or "images" not in given else {}
    fields = order_fields(asked)
    digests = tuple(f"{name}:{hashlib.sha256(one).hexdigest()}" for name, (_, one) in sent.items())
    origin = headers.origin([content] if not sent else [orjson.dumps([fields, digests, asked.model])], 0)
    ids = await run_in_threadpool(_kept, runtime, blobs, principal, asked, sent)

    def settle(job_id: str | None) -> None:
        for file_id in ids.values():
            if job_id is None:
                files.discard(runtime.db, principal.tenant_id, file_id)
            else:
                files.give_to_job(runtime.db, principal.tenant_id, file_id, job_id)

    try:
        wanted = _parsed(asked, fields, ids, digests)
    except HeadraceError:
        await run_in_threadpool(settle, None)
        raise
    return await respond(request, runtime, blobs, principal, asked, wanted, origin, "image_edit", settle)


async def _read(uploads: Files) -> dict[str, tuple[str, bytes]]:
    """Return the files ``image`` and ``mask`` of a form as names and bytes. Raises InvalidRequest."""
    found: dict[str, tuple[str, bytes]] = {}
    for field, value in uploads:
        name = field.removesuffix("[]")
        if name not in ("image", "mask"):
            raise InvalidRequest(
                f"the form has a file `{field}`: send `image`, and `mask` if there is one", param=field
            )
        if name in found:
            raise InvalidRequest(f"one `{name}` is changed at a time: send one", param=name)
        content = await value.read()
        check_header(content, name)
        found[name] = (value.filename or name, content)
    if "image" not in found:
        raise InvalidRequest("`image` is required: the file with the picture", param="image")
    return found


def _kept(
    runtime: Runtime, blobs: Blobs, principal: Principal, asked: EditBody, sent: Mapping[str, tuple[str, bytes]]
) -> dict[str, str]:
    """Keep the pictures as files of the tenant, if the model may be used; return their ids. Blocks."""
    runtime.submissions.version_of(principal, asked.model)
    ids = {}
    for name, (filename, content) in sent.items():
        draft = blobs.create()
        try:
            draft.write(content)
            ids[name] = files.create(
                runtime.db,
                principal.tenant_id,
                draft,
                filename=policed_filename(runtime, principal.tenant_id, filename),
                purpose=Purpose.VISION,
                most_bytes=runtime.settings.tenant_stored_bytes,
                ttl_s=_PICTURE_TTL_S,
            ).id
        finally:
            draft.drop()
    return ids


def _parsed(
    asked: EditBody, fields: dict[str, Any], ids: Mapping[str, str], digests: tuple[str, ...] = ()
) -> ParsedRequest:
    """Return the job of a body. ``ids``: of the files that came with it."""
    if ids:
        given: dict[str, Any] = {"images": [{"file_id": ids["image"]}]}
        given |= {"mask": {"file_id": ids["mask"]}} if "mask" in ids else {}
    else:
        given = {"images": [_image(one) for one in asked.images or ()]}
        given |= {} if asked.mask is None else {"mask": _image(asked.mask)}
    if asked.strength is not None:
        given["strength"] = asked.strength
    found = parsed(asked, IMAGE_EDIT, fields | given)
    if digests and isinstance(found.job, ImageEditRequest):
        return replace(found, job=found.job.with_sha256(digests))
    return found


def _image(given: Mapping[str, str]) -> dict[str, str]:
    """Return OpenAI's form of an image in JSON as ours."""
    return {"url" if name == "image_url" else name: value for name, value in given.items()}


def _line(body: Mapping[str, Any]) -> ParsedRequest:
    """Return the job of a line of a batch."""
    asked = EditBody.model_validate(body)
    return line_of(asked, _parsed(asked, order_fields(asked), {}))


PART = TaskRoutes(IMAGE_EDIT, (router,), {IMAGE_EDIT.urls[0]: _line})
