"""Routes of OpenAI's vector stores, and of the search in one."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.retrieval import vector_stores
from headrace.features.retrieval.adding_files import add_files, model_for
from headrace.features.retrieval.searching import search_store
from headrace.features.retrieval.store_bodies import FileOfBatch, NewStore, SearchBody, StoreChanges
from headrace.features.retrieval.store_views import (
    SearchPage,
    StoreList,
    StoreObject,
    page_of,
    search_page,
    store_object,
)
from headrace.features.retrieval.vector_stores import VectorStore
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import OriginHeadersOf, OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.db.database import Database

router = APIRouter(
    prefix="/v1/vector_stores", tags=["vector stores"], route_class=StrictJsonRoute, responses=DOCUMENTED
)

StoreId = Annotated[str, Path(description="id of the store", examples=["vs_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="`last_id` of the previous page")]
Before = Annotated[str | None, Query(description="`first_id` of the next page")]


def policed(runtime: Runtime, tenant_id: str, fields: dict[str, Any], param: str) -> dict[str, Any]:
    """Return texts beside files after the tenant's policy for all models. Raises InvalidRequest if it forbids them.

    Fields that the caller has named are in ``metadata``. A ``name`` would not be read: elsewhere it is an identifier.
    """
    found = runtime.guards.in_force(tenant_id)
    return fields if found is None else found.fields(fields, param)


@router.post("", response_model=StoreObject, summary="Create a vector store")
async def create_vector_store(
    runtime: RuntimeOf, principal: JobsWriter, body: NewStore, headers: OriginHeadersOf
) -> Response:
    """Create a store whose vectors are made by one embedding model, and add files to it, if there are any."""
    tenant_id = principal.tenant_id

    def create() -> VectorStore:
        model = model_for(runtime, principal, body.model)
        own = {"title": body.name or "", "description": body.description, "metadata": dict(body.metadata or {})}
        told = policed(runtime, tenant_id, own, "name")
        return vector_stores.create(
            runtime.db,
            tenant_id,
            model,
            name=told["title"],
            description=told["description"],
            metadata=told["metadata"],
            expires_days=None if body.expires_after is None else body.expires_after.days,
        )

    store = await run_in_threadpool(create)
    if body.file_ids:
        files = {
            file_id: FileOfBatch(file_id=file_id, chunking_strategy=body.chunking_strategy) for file_id in body.file_ids
        }
        try:
            await add_files(runtime, principal, store, [*files.values()], headers)
        except Exception:
            await run_in_threadpool(vector_stores.delete, runtime.db, tenant_id, store.id, actor=principal.key_id)
            raise
    return await _shown(runtime, tenant_id, store.id)


@router.get("", response_model=StoreList, summary="List vector stores")
async def list_vector_stores(
    runtime: RuntimeOf,
    principal: JobsReader,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Literal["desc", "asc"] = "desc",
) -> Response:
    """Return the tenant's stores, newest first by default."""

    def read(db: Database) -> StoreList:
        read_stores = partial(vector_stores.list_stores, db, principal.tenant_id)
        return StoreList(**page_of(read_stores, store_object, limit, after, before, order))

    return JsonResponse(await runtime.lists.read(principal, read))


@router.get("/{vector_store_id}", response_model=StoreObject, summary="Retrieve a vector store")
async def get_vector_store(runtime: RuntimeOf, principal: JobsReader, vector_store_id: StoreId) -> Response:
    """Return the store, with the numbers of its files."""
    return await _shown(runtime, principal.tenant_id, vector_store_id)


@router.post("/{vector_store_id}", response_model=StoreObject, summary="Change a vector store")
async def change_vector_store(
    runtime: RuntimeOf, principal: JobsWriter, vector_store_id: StoreId, body: StoreChanges
) -> Response:
    """Change the name, the metadata or the expiry; what is left out stays."""
    tenant_id = principal.tenant_id

    def change() -> VectorStore:
        told = policed(runtime, tenant_id, {"title": body.name, "metadata": body.metadata}, "name")
        return vector_stores.update(
            runtime.db,
            tenant_id,
            vector_store_id,
            name=told["title"],
            metadata=told["metadata"],
            sets_life="expires_after" in body.model_fields_set,
            expires_days=None if body.expires_after is None else body.expires_after.days,
        )

    return JsonResponse(store_object(await run_in_threadpool(change)))


@router.delete("/{vector_store_id}", response_model=Deleted, summary="Delete a vector store")
async def delete_vector_store(runtime: RuntimeOf, principal: JobsWriter, vector_store_id: StoreId) -> Response:
    """Delete the store with its passages. Its files stay files of the organization."""
    tenant_id, actor = principal.tenant_id, principal.key_id
    await run_in_threadpool(vector_stores.delete, runtime.db, tenant_id, vector_store_id, actor=actor)
    return JsonResponse(Deleted(id=vector_store_id, object="vector_store.deleted"))


@router.post("/{vector_store_id}/search", response_model=SearchPage, summary="Search a vector store")
async def search_vector_store(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    vector_store_id: StoreId,
    body: SearchBody,
    origin: OriginOf,
) -> Response:
    """Return the passages that answer the question best: by vectors and by words, fused by their ranks.

    The question's vector is made by a job of class `interactive`. A caller who leaves before the end cancels it.
    """
    found = await search_store(runtime, request, principal, vector_store_id, body, origin)
    if found is None:
        return Response()  # the caller has left
    return JsonResponse(search_page(body.queries, found))


async def _shown(runtime: Runtime, tenant_id: str, store_id: str) -> Response:
    return JsonResponse(store_object(await run_in_threadpool(vector_stores.get, runtime.db, tenant_id, store_id)))
