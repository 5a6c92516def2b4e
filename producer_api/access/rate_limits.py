"""Whether a key may send more now: rate limits, of the key and of its tenant. Whether the queue has room is
``producer_api.submission.queue_limits``'s, and what must be counted exactly ``store.tenants.quotas``'.

It knows no HTTP beyond the names of the headers that tell a client how much it has left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from producer_api.access.rate_limit_headers import note
from producer_api.caches.limit_cache import LimitCache
from store.errors import HeadraceError, InvalidRequest, RateLimited
from store.redis.rate_limiter import Decision, Limiter, Spend
from store.tenants.api_keys import Principal
from store.tenants.tenant_limits import Held, Limits

Headers = dict[str, str]


class OverRate(RateLimited):
    """More than a minute's; the headers say of what and how much is left."""

    def __init__(self, message: str, *, retry_after_s: float, headers: Headers) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


@dataclass(frozen=True, slots=True)
class _RateLimit:
    """One limit of a request's: whose it is in words, and what would be spent of it."""

    whose: str
    spend: Spend


class RateLimits:
    """Checks limits for submissions, for those that came together with one question. Blocks on Postgres and Redis."""

    def __init__(self, book: LimitCache, limiter: Limiter) -> None:
        self._book = book
        self._limiter = limiter

    def held_by(self, principal: Principal) -> Held:
        """Return the limits that hold for the key."""
        (held,) = self._book.held_by([principal])
        return held

    def spend_request(self, principal: Principal) -> Headers:
        """Count one request; return the headers that say what is left. Raises RateLimited."""
        return _raised(self.spend_requests([principal])[0])

    def spend_requests(self, principals: Sequence[Principal]) -> list[Headers | HeadraceError]:
        """Count a request of each; return for each what is left, or RateLimited."""
        held = self._book.held_by(principals)
        return self._spend(
            "requests",
            [
                _bounds("requests", one, 1, limits.key.requests_per_minute, limits.tenant.requests_per_minute)
                for one, limits in zip(principals, held, strict=True)
            ],
        )

    def spend_tokens(self, principal: Principal, num_tokens: int) -> Headers:
        """Count a prompt's tokens; return the headers that say what is left. Raises RateLimited, InvalidRequest."""
        return _raised(self.spend_all_tokens([(principal, num_tokens)])[0])

    def spend_all_tokens(self, prompts: Sequence[tuple[Principal, int]]) -> list[Headers | HeadraceError]:
        """Count each prompt's tokens; return for each what is left, RateLimited, or InvalidRequest if it is too long
        for any minute."""
        held = self._book.held_by([principal for principal, _ in prompts])
        return self._spend(
            "tokens",
            [
                _bounds("tokens", one, cost, limits.key.input_tokens_per_minute, limits.tenant.input_tokens_per_minute)
                for (one, cost), limits in zip(prompts, held, strict=True)
            ],
        )

    def used(self, whose: str, limits: Limits) -> tuple[int | None, int | None]:
        """Return how many requests and input tokens of a key or tenant are used now; None where it has no limit."""
        rates = {"requests": limits.requests_per_minute, "tokens": limits.input_tokens_per_minute}
        spends = {unit: Spend(f"{unit}:{whose}", rate, 0) for unit, rate in rates.items() if rate is not None}
        left = dict(zip(spends, self._limiter.check_all(list(spends.values())), strict=True))
        used = {unit: max(0, spends[unit].most - told.remaining) for unit, told in left.items()}
        return used.get("requests"), used.get("tokens")

    def _spend(self, unit: str, asked: Sequence[list[_RateLimit]]) -> list[Headers | HeadraceError]:
        decided = self._limiter.check_groups([[bound.spend for bound in bounds] for bounds in asked])
        return [_told(unit, bounds, decisions) for bounds, decisions in zip(asked, decided, strict=True)]


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


def _told(unit: str, bounds: Sequence[_RateLimit], decisions: Sequence[Decision]) -> Headers | HeadraceError:
    """Return the headers of the tighter limit, or the refusal of the one that refuses for longest."""
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
        f"more than {bound.spend.per_minute} {what} a minute {bound.whose}: try again in {decision.retry_after_s:.3g} s"
    )
    return OverRate(message, retry_after_s=decision.retry_after_s, headers=headers)


def _too_long(bound: _RateLimit) -> InvalidRequest:
    return InvalidRequest(
        f"the prompt has {bound.spend.cost} tokens, and {bound.spend.per_minute} may be sent a minute {bound.whose}:"
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
