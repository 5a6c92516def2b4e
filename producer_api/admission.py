"""Whether a job may come in: rate limits of the key, and how much is queued already.

Everything here refuses before acceptance; after a 202 nothing is refused for load. It knows no HTTP beyond the names
of the headers that tell a client how much it has left.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from store import jobs
from store.db import Database
from store.errors import InvalidRequest, RateLimited
from store.keys import Principal
from store.limits import Decision, Limiter
from store.settings import Settings

_COUNT_AGAIN_AFTER_S = 1.0
_MOST_TENANTS = 10_000


@dataclass(slots=True)
class _Queued:
    """Queued jobs as last counted, plus those accepted here since then."""

    own: int
    everyone: int
    until: float


class Admission:
    """Checks limits for submissions. Blocks on Redis and, about once a second and tenant, on Postgres."""

    def __init__(
        self, settings: Settings, db: Database, limiter: Limiter, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._db = db
        self._limiter = limiter
        self._clock = clock
        self._queued: dict[str, _Queued] = {}

    def spend_request(self, principal: Principal) -> dict[str, str]:
        """Count one request; return the headers that say what is left. Raises RateLimited."""
        limit = self._settings.requests_per_minute
        decision = self._limiter.check(f"requests:{principal.key_id}", per_minute=limit, cost=1, burst=None)
        if not decision.allowed:
            raise _limited(f"more than {limit} requests a minute with this key", decision)
        return _headers("requests", limit, decision)

    def spend_tokens(self, principal: Principal, num_tokens: int) -> dict[str, str]:
        """Count a prompt's tokens; return the headers that say what is left. Raises RateLimited."""
        limit = self._settings.tokens_per_minute
        if num_tokens > limit:
            raise InvalidRequest(
                f"the prompt has {num_tokens} tokens, and this key may send {limit} a minute: shorten the prompt",
                code="rate_limit_exceeded",
                param="input",
            )
        decision = self._limiter.check(f"tokens:{principal.key_id}", per_minute=limit, cost=num_tokens, burst=None)
        if not decision.allowed:
            raise _limited(f"more than {limit} input tokens a minute with this key", decision)
        return _headers("tokens", limit, decision)

    def reserve_place(self, tenant_id: str) -> None:
        """Count one more queued job; raise RateLimited (``queue_full``) if there is no room for it."""
        queued = self._count(tenant_id)
        if queued.own >= self._settings.max_queued_jobs_per_tenant:
            raise _full(f"you have {queued.own} jobs queued, the most that one tenant may have")
        if queued.everyone >= self._settings.max_queued_jobs:
            raise _full("the queue is full")
        queued.own += 1
        queued.everyone += 1

    def _count(self, tenant_id: str) -> _Queued:
        queued = self._queued.get(tenant_id)
        if queued is None or self._clock() >= queued.until:
            own, everyone = jobs.queued_counts(self._db, tenant_id)
            if len(self._queued) >= _MOST_TENANTS:
                self._queued.clear()
            queued = self._queued[tenant_id] = _Queued(own, everyone, self._clock() + _COUNT_AGAIN_AFTER_S)
        return queued


def _limited(what: str, decision: Decision) -> RateLimited:
    return RateLimited(f"{what}: try again in {decision.retry_after_s:.3g} s", retry_after_s=decision.retry_after_s)


def _full(what: str) -> RateLimited:
    return RateLimited(f"{what}: try again when some have ended", retry_after_s=5.0, code="queue_full")


def _headers(unit: str, limit: int, decision: Decision) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(decision.remaining),
        f"x-ratelimit-reset-{unit}": f"{math.ceil(decision.reset_s * 1000)}ms",
    }
