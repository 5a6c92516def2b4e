"""Limits of open streams and waits, by API key and tenant, in this process.

A request that follows a job is counted before it starts to, until its response has ended.
"""

from collections import Counter

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Scope

from producer_api.caches.limit_cache import LimitCache
from store.errors import RateLimited
from store.tenants.api_keys import Principal

_AGAIN_AFTER_S = 1.0
_ENTERED = "stream_of"


class StreamLimits:
    """Counts open streams and waits. Used on the event loop alone."""

    def __init__(self, limits: LimitCache) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()

    async def enter(self, request: Request) -> None:
        """Count a stream of the request's key. Raises RateLimited at the limit of the key or its tenant."""
        if not await self.try_enter(request):
            raise RateLimited(
                "as many streams and waits are open as this key or your organization may have at once: end one or poll",
                retry_after_s=_AGAIN_AFTER_S,
            )

    async def try_enter(self, request: Request) -> bool:
        """Count a stream of the request's key, once a request; return False at the limit of the key or its tenant."""
        principal: Principal = request.state.principal
        held = self._limits.cached(principal)
        if held is None:
            (held,) = await run_in_threadpool(self._limits.held_by, [principal])
        if request.scope["state"].get(_ENTERED) is not None:
            return True
        for owner, limit in ((principal.key_id, held.key), (principal.tenant_id, held.tenant)):
            if limit.concurrent_streams is not None and self._open[owner] >= limit.concurrent_streams:
                return False
        self._open.update((principal.key_id, principal.tenant_id))
        request.scope["state"][_ENTERED] = principal
        return True

    def leave(self, scope: Scope) -> None:
        """Stop counting a request after its response; a request that was not counted is ignored."""
        principal = scope["state"].pop(_ENTERED, None)
        if principal is not None:
            self._open.subtract((principal.key_id, principal.tenant_id))
            for owner in (principal.key_id, principal.tenant_id):
                if not self._open[owner]:
                    del self._open[owner]
