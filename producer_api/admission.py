"""Whether a key may send more now: its rate limits. Whether the queue has room is ``producer_api.room``'s.

It knows no HTTP beyond the names of the headers that tell a client how much it has left.
"""

import math
from collections.abc import Sequence

from store.errors import HeadraceError, InvalidRequest, RateLimited
from store.keys import Principal
from store.limits import Decision, Limiter, Spend
from store.settings import Settings

Headers = dict[str, str]


class OverRate(RateLimited):
    """More than a minute's; the headers say of what and how much is left."""

    def __init__(self, message: str, *, retry_after_s: float, headers: Headers) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class Admission:
    """Checks limits for submissions, for those that came together with one question. Blocks on Redis."""

    def __init__(self, settings: Settings, limiter: Limiter) -> None:
        self._settings = settings
        self._limiter = limiter

    def spend_request(self, principal: Principal) -> Headers:
        """Count one request; return the headers that say what is left. Raises RateLimited."""
        return _raised(self.spend_requests([principal])[0])

    def spend_requests(self, principals: Sequence[Principal]) -> list[Headers | HeadraceError]:
        """Count a request of each; return for each what is left, or RateLimited."""
        limit = self._settings.requests_per_minute
        spends = [Spend(f"requests:{principal.key_id}", limit) for principal in principals]
        what = f"more than {limit} requests a minute with this key"
        return [_told(what, "requests", limit, decision) for decision in self._limiter.check_all(spends)]

    def spend_tokens(self, principal: Principal, num_tokens: int) -> Headers:
        """Count a prompt's tokens; return the headers that say what is left. Raises RateLimited, InvalidRequest."""
        return _raised(self.spend_all_tokens([(principal, num_tokens)])[0])

    def spend_all_tokens(self, prompts: Sequence[tuple[Principal, int]]) -> list[Headers | HeadraceError]:
        """Count each prompt's tokens; return for each what is left, RateLimited, or InvalidRequest if it is too long
        for any minute."""
        limit = self._settings.tokens_per_minute
        spends = [Spend(f"tokens:{principal.key_id}", limit, num_tokens) for principal, num_tokens in prompts]
        what = f"more than {limit} input tokens a minute with this key"
        return [
            _told(what, "tokens", limit, decision) if spend.cost <= limit else _too_long(spend.cost, limit)
            for spend, decision in zip(spends, self._limiter.check_all(spends), strict=True)
        ]


def _raised(outcome: Headers | HeadraceError) -> Headers:
    if isinstance(outcome, HeadraceError):
        raise outcome
    return outcome


def _told(what: str, unit: str, limit: int, decision: Decision) -> Headers | RateLimited:
    headers = _headers(unit, limit, decision)
    if decision.allowed:
        return headers
    message = f"{what}: try again in {decision.retry_after_s:.3g} s"
    return OverRate(message, retry_after_s=decision.retry_after_s, headers=headers)


def _too_long(num_tokens: int, limit: int) -> InvalidRequest:
    return InvalidRequest(
        f"the prompt has {num_tokens} tokens, and this key may send {limit} a minute: shorten the prompt",
        code="rate_limit_exceeded",
        param="input",
    )


def _headers(unit: str, limit: int, decision: Decision) -> Headers:
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(decision.remaining),
        f"x-ratelimit-reset-{unit}": f"{math.ceil(decision.reset_s * 1000)}ms",
    }
