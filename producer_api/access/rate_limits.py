"""Rate limits of an API key and of its tenant, in requests and input tokens per minute.

The limits of the queue are in ``producer_api.submission.queue_limits``; exact quotas are in ``store.tenants.quotas``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from producer_api.access.rate_limit_headers import note
from producer_api.caches.limit_cache import LimitCache
from store.errors import HeadraceError, InvalidRequest, RateLimited
from store.redis.rate_limiter import Decision, Limiter, Spend
from store.tenants.api_keys import Principal
from store.tenants.tenant_limits import Limits, RequestLimits

Headers = dict[str, str]


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
    """Checks the rate limits of several requests with one script call. Blocks on Postgres and Redis."""

    def __init__(self, limits: LimitCache, limiter: Limiter) -> None:
        self._limits = limits
        self._limiter = limiter

    def held_by(self, principal: Principal) -> RequestLimits:
        """Return the limits that hold for the key."""
        (held,) = self._limits.held_by([principal])
        return held

    def spend_request(self, principal: Principal) -> Headers:
        """Count one request; return the rate-limit headers. Raises RateLimited."""
        return _raised(self.spend_requests([principal])[0])

    def spend_requests(self, principals: Sequence[Principal]) -> list[Headers | HeadraceError]:
        """Count one request of each principal; return the rate-limit headers or RateLimited for each."""
        held = self._limits.held_by(principals)
        return self._spend(
            "requests",
            [
                _bounds("requests", one, 1, limits.key.requests_per_minute, limits.tenant.requests_per_minute)
                for one, limits in zip(principals, held, strict=True)
            ],
        )

    def spend_tokens(self, principal: Principal, num_tokens: int) -> Headers:
        """Count a prompt's tokens; return the rate-limit headers. Raises RateLimited, InvalidRequest."""
        return _raised(self.spend_all_tokens([(principal, num_tokens)])[0])

    def spend_all_tokens(self, prompts: Sequence[tuple[Principal, int]]) -> list[Headers | HeadraceError]:
        """Count each prompt's tokens; return the rate-limit headers or an error for each.

        The error is RateLimited, or InvalidRequest for a prompt with more tokens than the limit of a minute.
        """
        held = self._limits.held_by([principal for principal, _ in prompts])
        return self._spend(
            "tokens",
            [
                _bounds("tokens", one, cost, limits.key.input_tokens_per_minute, limits.tenant.input_tokens_per_minute)
                for (one, cost), limits in zip(prompts, held, strict=True)
            ],
        )

    def used(self, owner: str, limits: Limits) -> tuple[int | None, int | None]:
        """Return the requests and input tokens that a key or tenant has used now; None where it has no limit.

        ``owner`` is the id of the key or tenant.
        """
        rates = {"requests": limits.requests_per_minute, "tokens": limits.input_tokens_per_minute}
        spends = {unit: Spend(f"{unit}:{owner}", rate, 0) for unit, rate in rates.items() if rate is not None}
        left = dict(zip(spends, self._limiter.check_all(list(spends.values())), strict=True))
        used = {unit: max(0, spends[unit].most - decision.remaining) for unit, decision in left.items()}
        return used.get("requests"), used.get("tokens")

    def _spend(self, unit: str, asked: Sequence[list[_RateLimit]]) -> list[Headers | HeadraceError]:
        decided = self._limiter.check_groups([[bound.spend for bound in bounds] for bounds in asked])
        return [_outcome(unit, bounds, decisions) for bounds, decisions in zip(asked, decided, strict=True)]


def _bounds(unit: str, principal: Principal, cost: int, of_key: int | None, of_tenant: int | None) -> list[_RateLimit]:
    found = []
    if of_key is not None:
        found.append(_RateLimit("with this key", Spend(f"{unit}:{principal.key_id}", of_key, cost)))
    if of_tenant is not None:
        found.append(_RateLimit("by your organization", Spend(f"{unit}:{principal.tenant_id}", of_tenant, cost)))
    return found


def _raised(outcome: Headers | HeadraceError) -> Headers:
    if isinstance(outcome, HeadraceError):
        raise outcome
    note(outcome)
    return outcome


def _outcome(unit: str, bounds: Sequence[_RateLimit], decisions: Sequence[Decision]) -> Headers | HeadraceError:
    """Return the headers of the tighter limit, or the error of the limit with the longest wait."""
    if not bounds:
        return {}
    for bound in bounds:
        if bound.spend.cost > bound.spend.most:
            return _too_long(bound)
    bound, decision = min(
        zip(bounds, decisions, strict=True), key=lambda one: (-one[1].retry_after_s, one[1].remaining)
    )
    headers = _headers(unit, bound.spend.per_minute, decision)
    if decision.allowed:
        return headers
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
