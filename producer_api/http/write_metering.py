"""Counts every request that may change something in the rate limits, also if it is refused.

A submission is counted with its batch (``producer_api.submission.submit``). If it is refused before that, it is counted
here, so that refused requests are not free. Every other write is counted here before its body is read.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer_api.access.rate_limit_headers import has_spent_request
from producer_api.access.rate_limits import OverRate
from producer_api.runtime import Runtime
from store.errors import HeadraceError
from store.tasks.registry import TASKS
from store.tenants.api_keys import Principal

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_SUBMISSIONS = frozenset({"/v1/jobs", *(url for task in TASKS.values() for url in task.urls)})
_MAX_REFUSE_S = 1.0
_MAX_KEYS = 10_000


class OverLimitKeys:
    """Keys that are over their limits: their requests are refused without Redis until their time has come.

    At most for a second, because the limits may have been changed. Used on the event loop alone.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, tuple[float, OverRate]] = {}

    def note(self, key_id: str, error: OverRate) -> None:
        """Note that a request with this key was refused now."""
        if len(self._until) >= _MAX_KEYS:
            self._until.clear()
        self._until[key_id] = self._clock() + min(error.retry_after_s, _MAX_REFUSE_S), error

    def check(self, key_id: str) -> None:
        """Raise OverRate if the key is still over its limit."""
        until, error = self._until.get(key_id, (-math.inf, None))
        if error is None:
            return
        if self._clock() < until:
            raise OverRate(error.message, retry_after_s=error.retry_after_s, headers=error.headers)
        del self._until[key_id]


class MeterWrites:
    """Counts requests that may change something; refuses those over the limits of their key or its tenant."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime
        self._refused = OverLimitKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WRITES or "principal" not in scope["state"]:
            return await self.app(scope, receive, send)
        principal: Principal = scope["state"]["principal"]
        self._refused.check(principal.key_id)
        if scope["method"] != "POST" or scope["path"] not in _SUBMISSIONS:
            await self._spend(principal)
            return await self.app(scope, receive, send)

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await self._count(principal)
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except HeadraceError as error:
            if isinstance(error, OverRate):
                self._refused.note(principal.key_id, error)
            await self._count(principal)
            raise

    async def _count(self, principal: Principal) -> None:
        """Count a refused submission that was not counted yet. Its response does not change."""
        if not has_spent_request():
            with suppress(HeadraceError):
                await self._spend(principal)

    async def _spend(self, principal: Principal) -> None:
        try:
            await run_in_threadpool(self._runtime.rate_limits.spend_request, principal)
        except OverRate as error:
            self._refused.note(principal.key_id, error)
            raise
