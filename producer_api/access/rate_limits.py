"""Rate limits of an API key and of its tenant: requests and input tokens per minute, and open streams.

The limits are read from Postgres and kept for two seconds. A route, or a thread that works for it, adds the headers of
a response to a context variable of the request. The outermost middleware puts them into the response, so an error that
is raised after the limits were checked has them too.

The limits of the queue are in ``producer_api.submission.queue_limits``; exact quotas are in ``store.tenants.quotas``.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Scope

from headrace.producer_api.caches.ttl_cache import LoadingCache
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, RateLimited
from headrace.store.redis.rate_limiter import Decision, Limiter, Spend
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.tenant_limits import Limits, RequestLimits, read_limits

KEEP_S = 2.0
"""The longest time until a changed limit takes effect in every process."""

WARNING_HEADER = "Headrace-Warning"
"""The job was accepted, and this is why it cannot run now."""

CACHE_HEADER = "X-Cache"
"""What the response cache did for the request."""

TRUNCATED_HEADER = "Headrace-Truncated"
"""What was left out of an input that was too long."""

_MAX_KEYS = 10_000
_STREAM_RETRY_AFTER_S = 1.0
_STREAM_OWNER = "stream_of"
_NOTED = ("x-ratelimit-", WARNING_HEADER, CACHE_HEADER, TRUNCATED_HEADER)

Headers = dict[str, str]
_TenantAndKey = tuple[str, str]

_noted: ContextVar[Headers | None] = ContextVar("rate_limit_headers", default=None)


class LimitCache:
    """Limits by API key. Safe to use from many threads."""

    def __init__(self, settings: Settings, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._db = db
        self._kept: LoadingCache[_TenantAndKey, RequestLimits] = LoadingCache(
            self._read, ttl_s=KEEP_S, max_size=_MAX_KEYS, clock=clock
        )

    def held_by(self, principal: Principal) -> RequestLimits:
        """Return the limits of a key. Blocks on Postgres if they are not cached."""
        return self._kept.get(_key(principal))

    def cached(self, principal: Principal) -> RequestLimits | None:
        """Return the limits of a key if they are cached. Blocks on nothing."""
        return self._kept.fresh(_key(principal))

    def refresh(self) -> None:
        """Read again the limits that were used lately and have half of their time behind them. Blocks on Postgres."""
        self._kept.refresh()

    def forget(self) -> None:
        """Drop everything, because a limit was changed in this process."""
        self._kept.forget()

    def _read(self, keys: Sequence[_TenantAndKey]) -> dict[_TenantAndKey, RequestLimits]:
        found = read_limits(self._db, self._settings, {*keys, *((tenant_id, None) for tenant_id, _ in keys)})
        return {key: RequestLimits(found[(key[0], None)].effective, found[key].effective) for key in keys}


def _key(principal: Principal) -> _TenantAndKey:
    return principal.tenant_id, principal.key_id


def begin_headers() -> Headers:
    """Start to collect the headers of this request; return the dict that collects them."""
    noted: Headers = {}
    _noted.set(noted)
    return noted


def note_headers(headers: Mapping[str, str]) -> None:
    """Add headers to the response of the current request."""
    noted = _noted.get()
    if noted is not None:
        noted.update({name: value for name, value in headers.items() if name.startswith(_NOTED)})


def has_spent_request() -> bool:
    """Return whether the current request was counted in the rate limits."""
    return "x-ratelimit-limit-requests" in (_noted.get() or ())


class OverRate(RateLimited):
    """A rate limit is exceeded; the headers name the limit and the amount that is left."""

    def __init__(self, message: str, *, retry_after_s: float, headers: Headers) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


@dataclass(frozen=True, slots=True)
class _RateLimit:
    """One limit of a request: its owner in words, and the amount that would be spent."""

    owner: str
    spend: Spend


class RateLimits:
    """Checks the rate limits of requests. Blocks on Postgres and Redis."""

    def __init__(self, limits: LimitCache, limiter: Limiter) -> None:
        self._limits = limits
        self._limiter = limiter

    def held_by(self, principal: Principal) -> RequestLimits:
        """Return the limits that hold for the key."""
        return self._limits.held_by(principal)

    def spend_request(self, principal: Principal) -> Headers:
        """Count one request; return the rate-limit headers. Raises RateLimited."""
        held = self.held_by(principal)
        of_key, of_tenant = held.key.requests_per_minute, held.tenant.requests_per_minute
        return self._spend("requests", _bounds("requests", principal, 1, of_key, of_tenant))

    def spend_tokens(self, principal: Principal, num_tokens: int) -> Headers:
        """Count a prompt's tokens; return the rate-limit headers.

        Raises RateLimited, and InvalidRequest for a prompt with more tokens than the limit of a minute.
        """
        held = self.held_by(principal)
        of_key, of_tenant = held.key.input_tokens_per_minute, held.tenant.input_tokens_per_minute
        return self._spend("tokens", _bounds("tokens", principal, num_tokens, of_key, of_tenant))

    def used(self, owner: str, limits: Limits) -> tuple[int | None, int | None]:
        """Return the requests and input tokens that a key or tenant has used now; None where it has no limit.

        ``owner`` is the id of the key or tenant.
        """
        rates = {"requests": limits.requests_per_minute, "tokens": limits.input_tokens_per_minute}
        spends = {unit: Spend(f"{unit}:{owner}", rate, 0) for unit, rate in rates.items() if rate is not None}
        left = dict(zip(spends, self._limiter.check_all(list(spends.values())), strict=True))
        used = {unit: max(0, spends[unit].most - decision.remaining) for unit, decision in left.items()}
        return used.get("requests"), used.get("tokens")

    def _spend(self, unit: str, bounds: Sequence[_RateLimit]) -> Headers:
        """Return the headers of the tighter limit; raise the error of the limit with the longest wait."""
        if not bounds:
            return {}
        decisions = self._limiter.check_all([bound.spend for bound in bounds])
        for bound in bounds:
            if bound.spend.cost > bound.spend.most:
                raise _too_long(bound)
        bound, decision = min(
            zip(bounds, decisions, strict=True), key=lambda one: (-one[1].retry_after_s, one[1].remaining)
        )
        headers = _headers(unit, bound.spend.per_minute, decision)
        if not decision.allowed:
            raise _over(unit, bound, decision, headers)
        note_headers(headers)
        return headers


def _bounds(unit: str, principal: Principal, cost: int, of_key: int | None, of_tenant: int | None) -> list[_RateLimit]:
    found = []
    if of_key is not None:
        found.append(_RateLimit("with this key", Spend(f"{unit}:{principal.key_id}", of_key, cost)))
    if of_tenant is not None:
        found.append(_RateLimit("by your organization", Spend(f"{unit}:{principal.tenant_id}", of_tenant, cost)))
    return found


def _over(unit: str, bound: _RateLimit, decision: Decision, headers: Headers) -> OverRate:
    what = "requests" if unit == "requests" else "input tokens"
    message = (
        f"more than {bound.spend.per_minute} {what} a minute {bound.owner}: try again in {decision.retry_after_s:.3g} s"
    )
    return OverRate(message, retry_after_s=decision.retry_after_s, headers=headers)


def _too_long(bound: _RateLimit) -> InvalidRequest:
    return InvalidRequest(
        f"the prompt has {bound.spend.cost} tokens, and {bound.spend.per_minute} may be sent a minute {bound.owner}:"
        " shorten the prompt",
        code="rate_limit_exceeded",
        param="input",
    )


def _headers(unit: str, limit: int, decision: Decision) -> Headers:
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(decision.remaining),
        f"x-ratelimit-reset-{unit}": f"{math.ceil(decision.reset_s * 1000)}ms",
    }


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
                retry_after_s=_STREAM_RETRY_AFTER_S,
            )

    async def try_enter(self, request: Request) -> bool:
        """Count a stream of the request's key, once a request; return False at the limit of the key or its tenant."""
        principal: Principal = request.state.principal
        held = self._limits.cached(principal)
        if held is None:
            held = await run_in_threadpool(self._limits.held_by, principal)
        if request.scope["state"].get(_STREAM_OWNER) is not None:
            return True
        for owner, limit in ((principal.key_id, held.key), (principal.tenant_id, held.tenant)):
            if limit.concurrent_streams is not None and self._open[owner] >= limit.concurrent_streams:
                return False
        self._open.update((principal.key_id, principal.tenant_id))
        request.scope["state"][_STREAM_OWNER] = principal
        return True

    def leave(self, scope: Scope) -> None:
        """Stop counting a request after its response; a request that was not counted is ignored."""
        principal = scope["state"].pop(_STREAM_OWNER, None)
        if principal is not None:
            self._open.subtract((principal.key_id, principal.tenant_id))
            for owner in (principal.key_id, principal.tenant_id):
                if not self._open[owner]:
                    del self._open[owner]
