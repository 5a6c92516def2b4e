"""Rate limits of a key and of its tenant: headers, messages, streams, and the log of refusals."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from starlette.requests import Request

from headrace.producer_api.access.auth import RefusalLog, may, require
from headrace.producer_api.access.rate_limits import (
    OverRate,
    RateLimits,
    StreamLimits,
    begin_headers,
    has_spent_request,
    note_headers,
)
from headrace.store.errors import HeadraceError, InvalidRequest, RateLimited
from headrace.store.redis.rate_limiter import Decision, Spend
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.tenant_limits import Limits, RequestLimits
from tests.stand_ins import stand_in

ONE, OTHER = (Principal("tenant", key, frozenset({"jobs:read"})) for key in ("key_1", "key_2"))
BOTH = RequestLimits(
    tenant=Limits(requests_per_minute=100, input_tokens_per_minute=1000),
    key=Limits(requests_per_minute=10, input_tokens_per_minute=200),
)


class Answers:
    """A limiter that answers from a list, and notes each question."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)
        self.asked: list[Any] = []

    def check_all(self, spends: Sequence[Spend]) -> list[Decision]:
        self.asked.append(spends)
        return [self.decisions.pop(0) for _ in spends]


def limits_of(held: RequestLimits, *decisions: Decision) -> tuple[RateLimits, Answers]:
    answers: Any = Answers(*decisions)
    cache = stand_in(held_by=lambda principal: held)
    return RateLimits(cache, answers), answers


def fits(remaining: int, reset_s: float = 0.5) -> Decision:
    return Decision(True, remaining, 0.0, reset_s)


def over(retry_after_s: float, remaining: int = 0) -> Decision:
    return Decision(False, remaining, retry_after_s, 60.0)


def test_the_tighter_limit_is_told() -> None:
    limits, answers = limits_of(BOTH, fits(9), fits(8, 1.2341), fits(3), fits(99))
    begin_headers()
    headers = limits.spend_request(ONE)
    expected = {"limit": "100", "remaining": "8", "reset": "1235ms"}
    assert headers == {f"x-ratelimit-{what}-requests": value for what, value in expected.items()}
    assert answers.asked == [[Spend("requests:key_1", 10, 1), Spend("requests:tenant", 100, 1)]]
    assert limits.spend_request(OTHER)["x-ratelimit-limit-requests"] == "10"


def test_the_longest_wait_is_told_in_words() -> None:
    limits, _ = limits_of(BOTH, over(2.0), over(3.4567, 5), over(2.0), fits(0))
    with pytest.raises(OverRate) as caught:
        limits.spend_request(ONE)
    assert all(named in caught.value.message for named in ("100 requests", "your organization", "3.46 s"))
    assert (caught.value.retry_after_s, caught.value.headers["x-ratelimit-remaining-requests"]) == (3.4567, "5")
    with pytest.raises(OverRate, match=r"10 requests .*this key.* 2 s"):
        limits.spend_request(ONE)


def test_tokens_have_limits_of_their_own() -> None:
    limits, answers = limits_of(BOTH, fits(193), fits(900), over(1.0), fits(1))
    begin_headers()
    assert limits.spend_tokens(ONE, 7) == {
        "x-ratelimit-limit-tokens": "200",
        "x-ratelimit-remaining-tokens": "193",
        "x-ratelimit-reset-tokens": "500ms",
    }
    assert not has_spent_request(), "tokens are no request"
    assert answers.asked == [[Spend("tokens:key_1", 200, 7), Spend("tokens:tenant", 1000, 7)]]
    with pytest.raises(OverRate, match=r"200 input tokens .*this key.* 1 s"):
        limits.spend_tokens(ONE, 200)


def test_a_prompt_over_the_tokens_of_a_minute_is_a_bad_request() -> None:
    limits, _ = limits_of(BOTH, over(1.0), over(1.0), over(1.0), over(1.0))
    with pytest.raises(InvalidRequest) as caught:
        limits.spend_tokens(ONE, 201)
    assert (caught.value.code, caught.value.param) == ("rate_limit_exceeded", "input")
    assert all(named in caught.value.message for named in ("201 tokens", "200", "this key"))
    limits, _ = limits_of(RequestLimits(tenant=Limits(input_tokens_per_minute=5)), over(1.0))
    with pytest.raises(InvalidRequest, match="your organization"):
        limits.spend_tokens(ONE, 6)


def test_without_limits_nothing_is_asked() -> None:
    free, answers = limits_of(RequestLimits())
    assert (free.spend_request(ONE), answers.asked) == ({}, [])


def test_what_was_used_is_the_limit_less_what_is_left() -> None:
    limits, answers = limits_of(BOTH, fits(7), fits(150), fits(12))
    assert limits.used("key_1", BOTH.key) == (3, 50)
    assert answers.asked == [[Spend("requests:key_1", 10, 0), Spend("tokens:key_1", 200, 0)]]
    assert limits.used("key_1", Limits(requests_per_minute=10)) == (0, None), "never below nothing"
    assert limits.used("key_1", Limits()) == (None, None)


def test_only_headers_of_limits_and_of_the_job_are_noted() -> None:
    noted = begin_headers()
    told = {"x-ratelimit-limit-requests": "1", "Headrace-Warning": "w", "X-Cache": "hit", "Headrace-Truncated": "t"}
    note_headers(told | {"Location": "/", "x-job-id": "j"})
    assert (noted, has_spent_request()) == (told, True)
    assert (begin_headers(), has_spent_request(), noted) == ({}, False, told)


def asking(principal: Principal = ONE) -> Request:
    return Request({"type": "http", "state": {"principal": principal}})


async def test_streams_are_counted_for_the_key_and_for_its_tenant() -> None:
    held = RequestLimits(tenant=Limits(concurrent_streams=3), key=Limits(concurrent_streams=2))
    streams = StreamLimits(stand_in(cached=lambda _: held))
    first, second, third, of_other, last = asking(), asking(), asking(), asking(OTHER), asking(OTHER)
    assert [await streams.try_enter(one) for one in (first, first, second, third, of_other, last)] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    with pytest.raises(RateLimited) as caught:
        await streams.enter(last)
    assert ("streams" in caught.value.message, caught.value.retry_after_s, caught.value.code) == (
        True,
        1.0,
        "rate_limit_exceeded",
    )
    streams.leave(third.scope)
    assert not await streams.try_enter(last), "one that was not counted gives nothing back"
    streams.leave(first.scope)
    streams.leave(first.scope)
    assert await streams.try_enter(last)
    assert not await streams.try_enter(first)


async def test_limits_that_are_not_cached_are_read() -> None:
    held = RequestLimits(key=Limits(concurrent_streams=0))
    cache: Any = SimpleNamespace(cached=lambda _: None, held_by=lambda principal: held)
    assert not await StreamLimits(cache).try_enter(asking())


def test_a_refusal_is_logged_with_its_key_and_each_code_has_its_own_second() -> None:
    now = 10.0
    refusals = RefusalLog(clock=lambda: now)
    scope = {"method": "GET", "state": {"principal": ONE}, "client": ("not an address", 1)}
    with structlog.testing.capture_logs() as told:
        refusals.note("insufficient_scope", scope)
        refusals.note("model_not_allowed", scope)
        refusals.note("rate_limit_exceeded", scope)
        now = 10.999
        refusals.note("insufficient_scope", scope)
        now = 11.0
        refusals.note("insufficient_scope", scope)
        now = 12.0
        refusals.note("insufficient_scope", scope)
    line = {"event": "access_refused", "log_level": "warning", "method": "GET", "route": None}
    line |= {"key_id": "key_1", "address": None}
    assert told == [
        line | {"code": "insufficient_scope", "num_unsaid": 0},
        line | {"code": "model_not_allowed", "num_unsaid": 0},
        line | {"code": "insufficient_scope", "num_unsaid": 1},
        line | {"code": "insufficient_scope", "num_unsaid": 0},
    ]


async def test_a_scope_is_held_or_comes_with_admin() -> None:
    admin = Principal("tenant", "key_3", frozenset({"admin"}))
    assert [may(ONE, "jobs:read"), may(ONE, "jobs:write"), may(admin, "jobs:write")] == [True, False, True]
    assert await require("jobs:read")(asking(), None) is ONE
    with pytest.raises(HeadraceError) as caught:
        await require("jobs:write")(asking(), None)
    assert "jobs:write" in caught.value.message
    with pytest.raises(ValueError, match="jobs:eat"):
        require("jobs:eat")
