"""Authentication of API keys, and the scopes that routes require.

Every request under ``/v1/`` is authenticated before its body is read, so a route without a scope is not open either. A
principal is cached for at most ten seconds: so long a revoked or expired key, or one with fewer rights, may still be
accepted. The process that changes a key drops it at once, and notifies the other processes through Redis.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from producer_api.caches.ttl_cache import TtlCache
from store.db.database import Database
from store.errors import Forbidden, Unauthenticated
from store.tenants import api_keys
from store.tenants.api_keys import Principal

KEEP_S = 10.0
_MAX_KEYS = 10_000
_HOW = "send it as `Authorization: Bearer hr_...`"


class Authenticator:
    """Returns the principal of an API key. Principals are cached by the key's hash."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._kept: TtlCache[bytes, Principal] = TtlCache(ttl_s=KEEP_S, max_size=_MAX_KEYS, clock=clock)

    async def principal(self, authorization: str | None) -> Principal:
        """Return the principal of the key in the header; raise Unauthenticated without a valid key."""
        plaintext = _bearer(authorization)
        digest = hashlib.sha256(plaintext.encode()).digest()
        if (kept := self._kept.fresh(digest)) is not None:
            return kept
        principal = await run_in_threadpool(api_keys.authenticate, self._db, plaintext)
        self._kept.put(digest, principal)
        return principal

    def forget(self, changed_id: str) -> None:
        """Drop a key, or all keys of a tenant, from the cache. ``changed_id`` is the id of the key or the tenant."""
        self._kept.forget(lambda principal: changed_id in (principal.key_id, principal.tenant_id))


def _bearer(authorization: str | None) -> str:
    if not authorization:
        raise Unauthenticated(f"no API key: {_HOW}")
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "bearer" or not credentials.strip():
        raise Unauthenticated(f"the Authorization header holds no bearer key: {_HOW}")
    return credentials.strip()


_documented = HTTPBearer(auto_error=False, bearerFormat="hr_<id>_<secret>", description="A Headrace API key")


def may(principal: Principal, scope: str) -> bool:
    """True if the key has ``scope``, or ``admin``, with which it may do everything."""
    return scope in principal.scopes or "admin" in principal.scopes


def require(scope: str) -> Callable[..., Awaitable[Principal]]:
    """Return the dependency of a route that requires ``scope``; a key with ``admin`` may do everything."""
    if scope not in api_keys.SCOPES:
        raise ValueError(f"no such scope: {scope}")

    # FastAPI writes the scope into the OpenAPI document, in the security of the operation.
    async def check(request: Request, _: Annotated[object, Security(_documented, scopes=[scope])]) -> Principal:
        principal: Principal = request.state.principal
        if may(principal, scope):
            return principal
        raise Forbidden(f"this API key lacks the scope {scope}: use one that has it")

    return check


AuditReader = Annotated[Principal, Depends(require("audit:read"))]
Admin = Annotated[Principal, Depends(require("admin"))]
JobsWriter = Annotated[Principal, Depends(require("jobs:write"))]
JobsReader = Annotated[Principal, Depends(require("jobs:read"))]
ModelsReader = Annotated[Principal, Depends(require("models:read"))]
ModelsAdmin = Annotated[Principal, Depends(require("models:admin"))]
QueuesAdmin = Annotated[Principal, Depends(require("queues:admin"))]
UsageReader = Annotated[Principal, Depends(require("usage:read"))]
WebhooksAdmin = Annotated[Principal, Depends(require("webhooks:admin"))]
