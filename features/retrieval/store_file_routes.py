"""Routes of the files of OpenAI's vector stores, and of batches of them."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.retrieval import passages, store_files, vector_stores
from headrace.features.retrieval.adding_files import add_files, cancel_jobs
from headrace.features.retrieval.store_bodies import FileChanges, FileOfBatch, NewFileBatch, NewStoreFileBody
from headrace.features.retrieval.store_files import FileBatch, StoreFile
from headrace.features.retrieval.store_routes import After, Before, Limit, StoreId, policed
from headrace.features.retrieval.store_views import (
    FileBatchObject,
    FileContentPage,
    StoreFileList,
    StoreFileObject,
    batch_object,
    content_page,
    file_object,
    page_of,
)
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import OriginHeadersOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.db.database import Database

router = APIRouter(
    prefix="/v1/vector_stores", tags=["vector stores"], route_class=StrictJsonRoute, responses=DOCUMENTED
)

StoredFileId = Annotated[str, Path(examples=["file_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
FileBatchId = Annotated[str, Path(examples=["vsfb_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
Status = Annotated[
    Literal["in_progress", "completed", "failed", "cancelled"] | None,
    Query(alias="filter", description="only files with this status"),
]
PASSAGES_A_PAGE = 500


@router.post("/{vector_store_id}/files", response_model=StoreFileObject, summary="Add a file to a vector store")
async def add_file(
    runtime: RuntimeOf,
    principal: JobsWriter,
    vector_store_id: StoreId,
    body: NewStoreFileBody,
    headers: OriginHeadersOf,
) -> Response:
    """Add a file. A job of class `batch` reads it, cuts its text into passages and makes their vectors.

    A file that is there already is read anew.
    """
    tenant_id = principal.tenant_id
    store = await run_in_threadpool(vector_stores.find, runtime.db, tenant_id, vector_store_id)
    fields = {"attributes": body.attributes, "chunking_strategy": body.chunking_strategy}
    entries = await run_in_threadpool(
        _policed_entries, runtime, tenant_id, [FileOfBatch(file_id=body.file_id, **fields)]
    )
    await add_files(runtime, principal, store, entries, headers)
    found = await run_in_threadpool(store_files.get, runtime.db, tenant_id, store.id, body.file_id)
    return JsonResponse(file_object(found))


@router.get("/{vector_store_id}/files", response_model=StoreFileList, summary="List a vector store's files")
async def list_store_files(
    runtime: RuntimeOf,
    principal: JobsReader,
    vector_store_id: StoreId,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Literal["desc", "asc"] = "desc",
    status: Status = None,
) -> Response:
    """Return the store's files, newest first by default."""

    def read(db: Database) -> StoreFileList:
        vector_stores.find(db, principal.tenant_id, vector_store_id)
        return _listed(db, principal.tenant_id, vector_store_id, limit, after, before, order, status)

    return JsonResponse(await runtime.lists.read(principal, read))


@router.get(
    "/{vector_store_id}/files/{file_id}", response_model=StoreFileObject, summary="Retrieve a vector store's file"
)
async def get_store_file(
    runtime: RuntimeOf, principal: JobsReader, vector_store_id: StoreId, file_id: StoredFileId
) -> Response:
    """Return the file with its status."""
    found = await run_in_threadpool(_current, runtime, principal.tenant_id, vector_store_id, file_id)
    return JsonResponse(file_object(found))


@router.post(
    "/{vector_store_id}/files/{file_id}", response_model=StoreFileObject, summary="Change a vector store's file"
)
async def change_store_file(
    runtime: RuntimeOf, principal: JobsWriter, vector_store_id: StoreId, file_id: StoredFileId, body: FileChanges
) -> Response:
    """Replace the file's attributes."""
    tenant_id = principal.tenant_id

    def change() -> StoreFile:
        _current(runtime, tenant_id, vector_store_id, file_id)
        attributes = _policed_attributes(runtime, tenant_id, body.attributes)
        return store_files.set_attributes(runtime.db, tenant_id, vector_store_id, file_id, attributes)

    return JsonResponse(file_object(await run_in_threadpool(change)))


@router.delete(
    "/{vector_store_id}/files/{file_id}", response_model=Deleted, summary="Take a file out of a vector store"
)
async def remove_store_file(
    runtime: RuntimeOf, principal: JobsWriter, vector_store_id: StoreId, file_id: StoredFileId
) -> Response:
    """Take the file out, with its passages. It stays a file of the organization."""
    tenant_id, actor = principal.tenant_id, principal.key_id

    def remove() -> None:
        _current(runtime, tenant_id, vector_store_id, file_id)
        job_id = store_files.detach(runtime.db, tenant_id, vector_store_id, file_id, actor=actor)
        cancel_jobs(runtime, tenant_id, [] if job_id is None else [job_id])

    await run_in_threadpool(remove)
    return JsonResponse(Deleted(id=file_id, object="vector_store.file.deleted"))


@router.get(
    "/{vector_store_id}/files/{file_id}/content",
    response_model=FileContentPage,
    summary="Retrieve the text of a vector store's file",
)
async def get_store_file_content(
    runtime: RuntimeOf,
    principal: JobsReader,
    vector_store_id: StoreId,
    file_id: StoredFileId,
    page: Annotated[int, Query(ge=-1, le=2**31 - 1, description="`next_page` of the previous page")] = -1,
) -> Response:
    """Return the file's passages in order. The end of each is the beginning of the next one."""
    tenant_id = principal.tenant_id

    def read(db: Database) -> FileContentPage:
        _current(runtime, tenant_id, vector_store_id, file_id)
        limit = PASSAGES_A_PAGE + 1
        found = passages.read(db, tenant_id, vector_store_id, file_id, after=page, limit=limit)
        return content_page(found, PASSAGES_A_PAGE)

    return JsonResponse(await runtime.lists.read(principal, read))


@router.post(
    "/{vector_store_id}/file_batches", response_model=FileBatchObject, summary="Add several files to a vector store"
)
async def create_file_batch(
    runtime: RuntimeOf,
    principal: JobsWriter,
    vector_store_id: StoreId,
    body: NewFileBatch,
    headers: OriginHeadersOf,
) -> Response:
    """Add up to 500 files, all or none. Each is read by a job of its own, and a bad one fails alone."""
    tenant_id = principal.tenant_id
    store = await run_in_threadpool(vector_stores.find, runtime.db, tenant_id, vector_store_id)
    entries = await run_in_threadpool(_policed_entries, runtime, tenant_id, body.entries)
    _, batch_id = await add_files(runtime, principal, store, entries, headers, as_batch=True)
    return await _batch(runtime, tenant_id, vector_store_id, batch_id or "")


@router.get(
    "/{vector_store_id}/file_batches/{batch_id}", response_model=FileBatchObject, summary="Retrieve a file batch"
)
async def get_file_batch(
    runtime: RuntimeOf, principal: JobsReader, vector_store_id: StoreId, batch_id: FileBatchId
) -> Response:
    """Return the batch with the numbers of its files."""
    return await _batch(runtime, principal.tenant_id, vector_store_id, batch_id)


@router.post(
    "/{vector_store_id}/file_batches/{batch_id}/cancel", response_model=FileBatchObject, summary="Cancel a file batch"
)
async def cancel_file_batch(
    runtime: RuntimeOf, principal: JobsWriter, vector_store_id: StoreId, batch_id: FileBatchId
) -> Response:
    """Cancel the files of the batch that are not read yet. The others stay in the store."""
    tenant_id = principal.tenant_id

    def stop() -> None:
        cancel_jobs(runtime, tenant_id, store_files.cancel_batch(runtime.db, tenant_id, vector_store_id, batch_id))

    await run_in_threadpool(stop)
    return await _batch(runtime, tenant_id, vector_store_id, batch_id)


@router.get(
    "/{vector_store_id}/file_batches/{batch_id}/files", response_model=StoreFileList, summary="List a batch's files"
)
async def list_batch_files(
    runtime: RuntimeOf,
    principal: JobsReader,
    vector_store_id: StoreId,
    batch_id: FileBatchId,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Literal["desc", "asc"] = "desc",
    status: Status = None,
) -> Response:
    """Return the batch's files, newest first by default."""

    def read(db: Database) -> StoreFileList:
        store_files.get_batch(db, principal.tenant_id, vector_store_id, batch_id)
        return _listed(db, principal.tenant_id, vector_store_id, limit, after, before, order, status, batch_id)

    return JsonResponse(await runtime.lists.read(principal, read))


def _listed(
    db: Database,
    tenant_id: str,
    store_id: str,
    limit: int,
    after: str | None,
    before: str | None,
    order: str,
    status: str | None,
    batch_id: str | None = None,
) -> StoreFileList:
    read = partial(store_files.list_files, db, tenant_id, store_id, batch_id=batch_id, status=status)
    return StoreFileList(**page_of(read, file_object, limit, after, before, order))


def _current(runtime: Runtime, tenant_id: str, store_id: str, file_id: str) -> StoreFile:
    """Return the file. Raises NotFound, also for a store that was deleted or has expired."""
    vector_stores.find(runtime.db, tenant_id, store_id)
    return store_files.get(runtime.db, tenant_id, store_id, file_id)


def _policed_entries(runtime: Runtime, tenant_id: str, entries: list[FileOfBatch]) -> list[FileOfBatch]:
    """Return the files with their attributes after the tenant's policy. Raises InvalidRequest."""
    done: list[FileOfBatch] = []
    for one in entries:
        attributes = _policed_attributes(runtime, tenant_id, one.attributes)
        done.append(one.model_copy(update={"attributes": attributes}))
    return done


def _policed_attributes(runtime: Runtime, tenant_id: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    attributes: dict[str, Any] = policed(runtime, tenant_id, {"metadata": dict(given or {})}, "attributes")["metadata"]
    return attributes


async def _batch(runtime: Runtime, tenant_id: str, store_id: str, batch_id: str) -> Response:
    def read() -> FileBatch:
        vector_stores.find(runtime.db, tenant_id, store_id)
        return store_files.get_batch(runtime.db, tenant_id, store_id, batch_id)

    return JsonResponse(batch_object(await run_in_threadpool(read)))
