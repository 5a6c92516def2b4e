"""Who is calling: API keys to principals, and scopes to routes.

Everything under ``/v1/`` is authenticated before a byte of its body is read, so a route that forgot to ask for a scope
is still not open. A principal is kept for ten seconds at most: that is how long a key may go on that was revoked, has
expired, or lost a right. The process that changed it forgets it at once, and tells the others by Redis.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from store.db.database import Database
from store.errors import Forbidden, Unauthenticated
from store.tenants import api_keys
from store.tenants.api_keys import Principal

KEEP_S = 10.0
_MOST_KEPT = 10_000
_HOW = "send it as `Authorization: Bearer hr_...`"


class KeyRing:
    """Principals by API key, remembered for a moment by the key's hash."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._kept: dict[bytes, tuple[Principal, float]] = {}

    async def principal(self, authorization: str | None) -> Principal:
        """Return whose key the header carries; raise Unauthenticated if it carries no good one."""
        plaintext = _bearer(authorization)
        digest = hashlib.sha256(plaintext.encode()).digest()
        kept = self._kept.get(digest)
        if kept is not None and self._clock() < kept[1]:
            return kept[0]
        principal = await run_in_threadpool(api_keys.authenticate, self._db, plaintext)
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[digest] = (principal, self._clock() + KEEP_S)
        return principal

    def forget(self, changed_id: str) -> None:
        """Look up again what is remembered of a key, or of a tenant's keys, at their next request."""
        for digest, (principal, _) in list(self._kept.items()):
            if changed_id in (principal.key_id, principal.tenant_id):
                self._kept.pop(digest, None)


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
    """Return the dependency of a route whose callers need ``scope``; a key with ``admin`` may do everything."""
    if scope not in api_keys.SCOPES:
        raise ValueError(f"no such scope: {scope}")

    # The scope is in the OpenAPI document beside the operation's security, where clients and the tests look it up.
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
