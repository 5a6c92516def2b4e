"""Whether a key may send more now: its rate limits. Whether the queue has room is ``producer_api.room``'s.

It knows no HTTP beyond the names of the headers that tell a client how much it has left.
"""

import math

from store.errors import InvalidRequest, RateLimited
from store.keys import Principal
from store.limits import Decision, Limiter
from store.settings import Settings


class Admission:
    """Checks limits for submissions. Blocks on Redis."""

    def __init__(self, settings: Settings, limiter: Limiter) -> None:
        self._settings = settings
        self._limiter = limiter

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


def _limited(what: str, decision: Decision) -> RateLimited:
    return RateLimited(f"{what}: try again in {decision.retry_after_s:.3g} s", retry_after_s=decision.retry_after_s)


def _headers(unit: str, limit: int, decision: Decision) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(decision.remaining),
        f"x-ratelimit-reset-{unit}": f"{math.ceil(decision.reset_s * 1000)}ms",
    }
