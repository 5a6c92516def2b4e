"""Authentication of API keys, the scopes that routes require, and the log of refusals.

Every request under ``/v1/`` is authenticated before its body is read, so a route without a scope is not open either. A
principal is cached for at most ten seconds: so long a revoked or expired key, or one with fewer rights, may still be
accepted. The process that changes a key drops it at once, and notifies the other processes through Redis.

A request that is refused because of its key gets a line in the log, but no audit row. The audit log has a row for each
change, and a caller without a key must not be able to make it grow. For the same reason many refusals are one line a
second, with the number of refusals since the last line.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated

import structlog
from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Scope

from headrace.producer_api.caches.ttl_cache import TtlCache
from headrace.store.db.database import Database
from headrace.store.errors import Forbidden, Unauthenticated
from headrace.store.tenants import api_keys
from headrace.store.tenants.api_keys import Principal

_log = structlog.get_logger("headrace.producer_api")

KEEP_S = 10.0
REFUSAL_CODES = frozenset({"invalid_api_key", "insufficient_scope", "model_not_allowed"})
LOG_AGAIN_AFTER_S = 1.0
_MAX_KEYS = 10_000
_HOW = "send it as `Authorization: Bearer hr_...` or `x-api-key: hr_...`"


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
    """True if the key has ``scope``, or ``admin`` if that includes it."""
    return api_keys.includes(principal.scopes, scope)


def require(scope: str) -> Callable[..., Awaitable[Principal]]:
    """Return the dependency of a route that requires ``scope``."""
    if scope not in api_keys.SCOPES:
        raise ValueError(f"no such scope: {scope}")

    # FastAPI writes the scope into the OpenAPI document, in the security of the operation.
    async def check(request: Request, _: Annotated[object, Security(_documented, scopes=[scope])]) -> Principal:
        principal: Principal = request.state.principal
        if may(principal, scope):
            return principal
        operation = ", which `admin` does not include" if scope in api_keys.OPERATION_SCOPES else ""
        raise Forbidden(f"this API key lacks the scope {scope}{operation}: use one that has it")

    return check


AuditReader = Annotated[Principal, Depends(require("audit:read"))]
Admin = Annotated[Principal, Depends(require("admin"))]
JobsWriter = Annotated[Principal, Depends(require("jobs:write"))]
JobsReader = Annotated[Principal, Depends(require("jobs:read"))]
ModelsReader = Annotated[Principal, Depends(require("models:read"))]
ModelsAdmin = Annotated[Principal, Depends(require("models:admin"))]
QueuesAdmin = Annotated[Principal, Depends(require("queues:admin"))]
RegistryAdmin = Annotated[Principal, Depends(require("registry:admin"))]
UsageReader = Annotated[Principal, Depends(require("usage:read"))]
WebhooksAdmin = Annotated[Principal, Depends(require("webhooks:admin"))]


def address_of(scope: Scope) -> str | None:
    """Return the caller's IP address; None if a trusted proxy has passed on something else."""
    return _address(scope["client"][0]) if scope.get("client") else None


@lru_cache(maxsize=1024)
def _address(host: str) -> str | None:
    try:
        return str(ip_address(host))
    except ValueError:
        return None


class RefusalLog:
    """Logs the requests that this process refuses because of their key. Used on the event loop alone."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = dict.fromkeys(REFUSAL_CODES, 0.0)
        self._num_skipped = dict.fromkeys(REFUSAL_CODES, 0)

    def note(self, code: str, scope: Scope) -> None:
        """Log a refusal if its code is about the key. The line has the request's id and address."""
        if code not in REFUSAL_CODES:
            return
        now = self._clock()
        if now < self._next_at[code]:
            self._num_skipped[code] += 1
            return
        principal = scope["state"].get("principal")
        _log.warning(
            "access_refused",
            code=code,
            method=scope["method"],
            route=getattr(scope.get("route"), "path", None),
            key_id=None if principal is None else principal.key_id,
            address=address_of(scope),
            num_unsaid=self._num_skipped[code],
        )
        self._next_at[code], self._num_skipped[code] = now + LOG_AGAIN_AFTER_S, 0
