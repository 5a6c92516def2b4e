"""How many streams and waits a key and its tenant have open at this process, each of which follows a job.

A request that follows a job enters here before it does, and has left when its response has ended.
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
    """Counts them. Used on the event loop alone."""

    def __init__(self, book: LimitCache) -> None:
        self._book = book
        self._open: Counter[str] = Counter()

    async def enter(self, request: Request) -> None:
        """Count one more of the request's key. Raises RateLimited if there are as many as may be."""
        if not await self.try_enter(request):
            raise RateLimited(
                "as many streams and waits are open as this key or your organization may have at once: end one or poll",
                retry_after_s=_AGAIN_AFTER_S,
            )

    async def try_enter(self, request: Request) -> bool:
        """Count one more of the request's key, unless there are as many as may be; a request is counted once."""
        principal: Principal = request.state.principal
        held = self._book.cached(principal)
        if held is None:
            (held,) = await run_in_threadpool(self._book.held_by, [principal])
        if request.scope["state"].get(_ENTERED) is not None:
            return True
        for whose, limit in ((principal.key_id, held.key), (principal.tenant_id, held.tenant)):
            if limit.concurrent_streams is not None and self._open[whose] >= limit.concurrent_streams:
                return False
        self._open.update((principal.key_id, principal.tenant_id))
        request.scope["state"][_ENTERED] = principal
        return True

    def leave(self, scope: Scope) -> None:
        """Note that the response of a request has ended; one that had not entered is none of ours."""
        principal = scope["state"].pop(_ENTERED, None)
        if principal is not None:
            self._open.subtract((principal.key_id, principal.tenant_id))
            for whose in (principal.key_id, principal.tenant_id):
                if not self._open[whose]:
                    del self._open[whose]
