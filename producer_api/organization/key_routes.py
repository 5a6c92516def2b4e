"""A tenant's API keys: made, looked at, changed, rotated and revoked by a key with the scope ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from producer_api.access.auth import Admin
from producer_api.http.requests import RuntimeOf, StrictJsonRoute
from producer_api.http.views import JsonResponse
from producer_api.organization.key_views import (
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
from producer_api.runtime import Runtime
from producer_api.server.errors import DOCUMENTED
from producer_api.webhooks.webhook_views import Deleted
from store.errors import Unavailable
from store.redis.key_notices import publish_change
from store.tenants import api_key_admin
from store.tenants.api_key_admin import ApiKey, IssuedKey

router = APIRouter(prefix="/v1/organization/api_keys", tags=["keys"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_NEVER_STORED = {"Cache-Control": "no-store"}

KeyId = Annotated[str, Path(examples=["key_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]


@router.post("", status_code=201, response_model=IssuedKeyObject, summary="Make an API key")
async def create_key(runtime: RuntimeOf, principal: Admin, body: KeyRequest) -> Response:
    """Make a key that may do no more than the one it is made with. This answer alone shows its `value`."""
    issued = await run_in_threadpool(
        lambda: api_key_admin.create(
            runtime.db, principal.tenant_id, body.wanted, actor=principal.key_id, giver=principal.key_id
        )
    )
    return JsonResponse(issued_key_object(issued), status_code=201, headers=_NEVER_STORED)


@router.get("", response_model=KeyList, summary="List API keys")
async def list_keys(
    runtime: RuntimeOf,
    principal: Admin,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="the last id of the page before")] = None,
) -> Response:
    """Return the tenant's keys, newest first, also those that were revoked or have expired."""
    found = await runtime.lists.read(
        principal, lambda db: api_key_admin.list_keys(db, principal.tenant_id, limit=limit + 1, after=after)
    )
    return JsonResponse(key_list(found, limit))


@router.get("/{key_id}", response_model=KeyObject, summary="Look at an API key")
async def get_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId) -> Response:
    """Return what a key may do and when it was last used."""
    found = await run_in_threadpool(api_key_admin.get_key, runtime.db, principal.tenant_id, key_id)
    return JsonResponse(key_object(found))


@router.patch("/{key_id}", response_model=KeyObject, summary="Change an API key")
async def update_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId, body: KeyPatch) -> Response:
    """Change a key's name, scopes, models or end. It holds within ten seconds in every process."""
    changed = await run_in_threadpool(
        lambda: api_key_admin.update(
            runtime.db, principal.tenant_id, key_id, body.change, actor=principal.key_id, giver=principal.key_id
        )
    )
    await _tell(runtime, key_id)
    return JsonResponse(key_object(changed))


@router.post("/{key_id}/rotate", status_code=201, response_model=RotatedKeyObject, summary="Rotate an API key")
async def rotate_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId, body: KeyRotation | None = None) -> Response:
    """Make a key with the same name and rights; the old one works on for `overlap_s`, a day unless told otherwise."""
    asked = body or KeyRotation()

    def rotate() -> tuple[ApiKey, IssuedKey]:
        return api_key_admin.rotate(
            runtime.db,
            principal.tenant_id,
            key_id,
            overlap_s=asked.overlap_s,
            until=asked.until,
            actor=principal.key_id,
            giver=principal.key_id,
        )

    old, issued = await run_in_threadpool(rotate)
    await _tell(runtime, key_id)
    return JsonResponse(rotated_key_object(old, issued), status_code=201, headers=_NEVER_STORED)


@router.delete("/{key_id}", response_model=Deleted, summary="Revoke an API key")
async def revoke_key(runtime: RuntimeOf, principal: Admin, key_id: KeyId) -> Response:
    """End a key for good: here at once, in every other process within ten seconds. It stays in the list."""
    await run_in_threadpool(
        lambda: api_key_admin.revoke(
            runtime.db, principal.tenant_id, key_id, actor=principal.key_id, giver=principal.key_id
        )
    )
    await _tell(runtime, key_id)
    return JsonResponse(Deleted(id=key_id, object="organization.api_key"))


async def _tell(runtime: Runtime, key_id: str) -> None:
    """Let every process look the key up again: this one at its next request, the others when they hear of it.

    Without Redis they do when what they remember is ten seconds old.
    """
    runtime.authenticator.forget(key_id)
    if runtime.redis_watch.is_away:
        return
    try:
        await run_in_threadpool(publish_change, runtime.redis, key_id)
    except Unavailable:
        runtime.redis_watch.failed()
