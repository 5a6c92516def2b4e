"""Routes of a tenant's API keys: create, read, change, rotate, revoke. They need the scope ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.producer_api.access.auth import Admin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse
from headrace.producer_api.organization.key_views import (
    IssuedKeyObject,
    KeyList,
    KeyObject,
    KeyPatch,
    KeyRequest,
    KeyRotation,
    RotatedKeyObject,
    issued_key_object,
    key_list,
    key_object,
    rotated_key_object,
)
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import Unavailable
from headrace.store.redis.key_notices import publish_change
from headrace.store.tenants import api_key_admin
from headrace.store.tenants.api_key_admin import ApiKey, IssuedKey

router = APIRouter(prefix="/v1/organization/api_keys", tags=["keys"], route_class=StrictJsonRoute, responses=DOCUMENTED)

KeyId = Annotated[str, Path(examples=["key_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]


@router.post("", status_code=201, response_model=IssuedKeyObject, summary="Create an API key")
async def create_key(runtime: RuntimeOf, principal: Admin, body: KeyRequest) -> Response:
    """Create a key with at most the rights of the key that creates it. Only this answer shows its `value`."""
    issued = await run_in_threadpool(
        lambda: api_key_admin.create(
            runtime.db, principal.tenant_id, body.wanted, actor=principal.key_id, grantor=principal.key_id
        )
    )
    return JsonResponse(issued_key_object(issued), status_code=201)


@router.get("", response_model=KeyList, summary="List API keys")
async def list_keys(
    runtime: RuntimeOf,
    principal: Admin,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
) -> Response:
    """Return the tenant's keys, newest first, including revoked and expired ones."""
    found = await runtime.lists.read(
        principal, lambda db: api_key_admin.list_keys(db, principal.tenant_id, limit=limit + 1, after=after)
    )
    return JsonResponse(key_list(found, limit))


@router.get("/{key_id}", response_model=KeyObject, summary="Retrieve an API key")
async def get_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId) -> Response:
    """Return a key: its scopes, models and last use."""
    found = await run_in_threadpool(api_key_admin.get_key, runtime.db, principal.tenant_id, key_id)
    return JsonResponse(key_object(found))


@router.patch("/{key_id}", response_model=KeyObject, summary="Change an API key")
async def update_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId, body: KeyPatch) -> Response:
    """Change a key's name, scopes, models or expiry. All processes apply it within ten seconds."""
    changed = await run_in_threadpool(
        lambda: api_key_admin.update(
            runtime.db, principal.tenant_id, key_id, body.change, actor=principal.key_id, grantor=principal.key_id
        )
    )
    await _invalidate(runtime, key_id)
    return JsonResponse(key_object(changed))


@router.post("/{key_id}/rotate", status_code=201, response_model=RotatedKeyObject, summary="Rotate an API key")
async def rotate_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId, body: KeyRotation | None = None) -> Response:
    """Create a key with the same name and rights. The old key works for `overlap_s` more, by default a day."""
    asked = body or KeyRotation()

    def rotate() -> tuple[ApiKey, IssuedKey]:
        return api_key_admin.rotate(
            runtime.db,
            principal.tenant_id,
            key_id,
            overlap_s=asked.overlap_s,
            until=asked.until,
            actor=principal.key_id,
            grantor=principal.key_id,
        )

    old, issued = await run_in_threadpool(rotate)
    await _invalidate(runtime, key_id)
    return JsonResponse(rotated_key_object(old, issued), status_code=201)


@router.delete("/{key_id}", response_model=Deleted, summary="Revoke an API key")
async def revoke_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId) -> Response:
    """Revoke a key permanently: at once in this process, within ten seconds in all others. It stays in the list."""
    await run_in_threadpool(
        lambda: api_key_admin.revoke(
            runtime.db, principal.tenant_id, key_id, actor=principal.key_id, grantor=principal.key_id
        )
    )
    await _invalidate(runtime, key_id)
    return JsonResponse(Deleted(id=key_id, object="organization.api_key"))


async def _invalidate(runtime: Runtime, key_id: str) -> None:
    """Invalidate the key in this process's cache and, by a Redis message, in those of all others.

    Without Redis the other caches expire after ten seconds.
    """
    runtime.authenticator.forget(key_id)
    if runtime.redis_breaker.is_away:
        return
    try:
        await run_in_threadpool(publish_change, runtime.redis, key_id)
    except Unavailable:
        runtime.redis_breaker.failed()
