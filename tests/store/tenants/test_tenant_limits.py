"""Limits of a tenant and its keys, by source, and the message when one is reached."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, InvalidRequest, NotFound, QuotaExceeded, RateLimited
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings
from headrace.store.tenants import quotas
from headrace.store.tenants.api_key_admin import revoke
from headrace.store.tenants.api_keys import authenticate, create_key
from headrace.store.tenants.quotas import QuotaPart, QuotaRequest, QuotaUsage, check_quota, month_end
from headrace.store.tenants.tenant_limits import (
    LayeredLimits,
    Limits,
    RequestLimits,
    SetBy,
    check_key,
    check_lower,
    copy_limits,
    key_defaults,
    read_limits,
    set_limits,
    tenant_defaults,
)
from headrace.store.tenants.usage import DETAIL_S, Price, TimeBuckets, set_price
from tests.refusals import Naming
from tests.store.making import Query


def test_the_stricter_limit_holds_and_a_default_stands_in() -> None:
    operator, own = Limits(concurrent_jobs=5, queued_tokens=9), Limits(concurrent_jobs=7, live_batches=2)
    both = Limits(concurrent_jobs=5, queued_tokens=9, live_batches=2)
    assert operator.stricter(own) == own.stricter(operator) == both
    default = Limits(queued_tokens=4, requests_per_minute=3)
    layered = LayeredLimits(default, operator, Limits(concurrent_jobs=1))
    ceiling = Limits(concurrent_jobs=5, queued_tokens=9, requests_per_minute=3)
    assert layered.ceiling == ceiling
    assert layered.effective == Limits(concurrent_jobs=1, queued_tokens=9, requests_per_minute=3)
    assert Limits(monthly_cost=Decimal(0), concurrent_jobs=0).given() == {"concurrent_jobs": 0, "monthly_cost": 0}
    check_lower(ceiling, ceiling)
    check_lower(Limits(live_batches=99), ceiling)
    with pytest.raises(InvalidRequest) as refused:
        check_lower(Limits(queued_tokens=10), ceiling)
    assert (refused.value.message, refused.value.param) == (
        Naming("`queued_tokens`", " 9 "),
        "queued_tokens",
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrent_jobs": -1}, Naming("not -1")),
        ({"queued_tokens": (1 << 53) + 1}, Naming("not 9007199254740993")),
        ({"monthly_cost": Decimal("NaN")}, Naming("not NaN")),
        ({"monthly_cost": Decimal("-0.1")}, Naming("not -0.1")),
        (
            {"requests_per_minute": 0},
            Naming("requests_per_minute", " 1"),
        ),
        (
            {"input_tokens_per_minute": 0},
            Naming("input_tokens_per_minute", " 1"),
        ),
    ],
)
def test_a_limit_is_a_number_that_can_be_kept(given: dict[str, Any], said: Naming) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Limits(**given)
    assert (refused.value.message, refused.value.param) == (said, next(iter(given)))
    Limits(queued_tokens=1 << 53)


def test_defaults_are_those_of_the_settings() -> None:
    settings = Settings(
        max_queued_tokens_per_tenant=4,
        tenant_live_batches=6,
        requests_per_minute=11,
        tokens_per_minute=12,
        key_concurrent_streams=17,
    )
    assert tenant_defaults(settings) == Limits(queued_tokens=4, live_batches=6)
    assert key_defaults(settings) == Limits(11, 12, concurrent_streams=17)


def test_limits_are_a_tenants_or_a_keys_own_and_on_record(db: Database, tenant: str, other_tenant: str) -> None:
    first, second = (authenticate(db, create_key(db, tenant, name, ["jobs:read"], actor="mia")).key_id for name in "ab")
    settings = Settings(key_concurrent_streams=50, tenant_live_batches=60)

    def limits_of(owner: str, key: str | None) -> LayeredLimits:
        return read_limits(db, settings, [(owner, key)])[owner, key]

    def set_(key: str | None, limits: Limits, set_by: SetBy) -> None:
        set_limits(db, tenant, key, limits, set_by=set_by, actor="mia", request_id="req_1")

    set_(first, Limits(concurrent_jobs=1, monthly_cost=Decimal("0.50")), SetBy.OPERATOR)
    set_(first, Limits(queued_tokens=2), SetBy.TENANT)
    set_(None, Limits(concurrent_jobs=3), SetBy.OPERATOR)
    set_(None, Limits(concurrent_jobs=4), SetBy.OPERATOR)
    of_first = LayeredLimits(
        key_defaults(settings), Limits(concurrent_jobs=1, monthly_cost=Decimal("0.5")), Limits(queued_tokens=2)
    )
    assert limits_of(tenant, first) == of_first
    assert limits_of(tenant, None) == LayeredLimits(tenant_defaults(settings), Limits(concurrent_jobs=4), Limits())
    assert limits_of(tenant, second) == LayeredLimits(key_defaults(settings), Limits(), Limits())
    assert limits_of(other_tenant, None) == LayeredLimits(tenant_defaults(settings), Limits(), Limits())
    with db.begin(tenant_id=tenant) as connection:
        copy_limits(connection, tenant, first, second, [SetBy.OPERATOR])
    assert limits_of(tenant, second) == LayeredLimits(key_defaults(settings), of_first.operator, Limits())
    check_key(db, tenant, first)
    revoked = authenticate(db, create_key(db, tenant, "c", ["jobs:read"], actor="t")).key_id
    revoke(db, tenant, revoked, actor="t", grantor=None)
    for owner, key in ((other_tenant, first), (tenant, "key_none"), (tenant, revoked)):
        with pytest.raises(NotFound) as missing:
            check_key(db, owner, key)
        assert (missing.value.message, missing.value.param) == (Naming(key, "in force"), "key_id")
    newest, before, _, of_key = (e for e in list_entries(db, tenant) if e.action == "limits.set")
    assert (newest.resource, newest.request_id, newest.detail) == (
        tenant,
        "req_1",
        {"set_by": "operator", "before": {"concurrent_jobs": 3}, "after": {"concurrent_jobs": 4}},
    )
    assert (newest.before_hash, newest.after_hash) == (before.after_hash, hash_of({"concurrent_jobs": 4}))
    after = {"concurrent_jobs": 1, "monthly_cost": "0.50"}
    assert (of_key.action, of_key.resource, of_key.detail) == (
        "limits.set",
        first,
        {"set_by": "operator", "before": None, "after": after},
    )


def quota(limits: Limits, used: QuotaUsage, more: QuotaUsage) -> HeadraceError | None:
    return check_quota(limits, used, more, "this key")


def test_a_quota_is_reached_only_by_more_than_it() -> None:
    all_of_it = Limits(concurrent_jobs=3, queued_tokens=30, monthly_cost=Decimal(9))
    used, more = QuotaUsage(2, 20, Decimal(3), Decimal(4)), QuotaUsage(1, 10, Decimal(2))
    assert quota(all_of_it, used, more) is None
    assert (used + more).cost == 9
    assert used + more == QuotaUsage(3, 30, Decimal(5), Decimal(4))
    jobs = quota(Limits(concurrent_jobs=2), used, more)
    assert isinstance(jobs, RateLimited)
    assert (jobs.message, jobs.code, jobs.retry_after_s) == (
        Naming("this key has 2 jobs"),
        "rate_limit_exceeded",
        2.0,
    )
    tokens = quota(Limits(queued_tokens=29), used, more)
    assert isinstance(tokens, RateLimited)
    assert (tokens.message, tokens.code, tokens.retry_after_s) == (
        Naming("this key has 20 tokens", " 10", " 29 "),
        "queue_full",
        2.0,
    )
    never = quota(Limits(queued_tokens=9), used, more)
    assert isinstance(never, InvalidRequest)
    assert (never.message, never.param) == (
        Naming("max_tokens", "10 tokens", "this key", " 9 "),
        "sampling.max_tokens",
    )
    assert quota(Limits(queued_tokens=10), QuotaUsage(), more) is None
    spent = quota(Limits(monthly_cost=Decimal("8.50")), used, more)
    assert isinstance(spent, QuotaExceeded)
    assert spent.message == Naming("this key", "4 of 8.5 ", " 3 ", "this one 2", "-01T00:00:00Z")


def test_a_month_ends_where_the_next_begins() -> None:
    assert month_end(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_end(datetime(2026, 11, 1, tzinfo=UTC)) == datetime(2026, 12, 1, tzinfo=UTC)
    assert TimeBuckets(100, 60, 3).end_s == 280
    assert DETAIL_S == 604_800, "a week"


def test_a_job_of_steps_is_counted_with_all_its_parts() -> None:
    parts = (QuotaPart("tiny@1", 5, 8), QuotaPart("embed@1", 7, 0))
    assert QuotaRequest("job_1", "ten_1", "key_1", parts, RequestLimits()).num_tokens == 15


def test_changes_are_added_up_for_a_dispatcher_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def fold(_: object, most: int = quotas.FOLD_MOST, *, past: int = 0) -> int:
        asked.append(past)
        return quotas.FOLD_MOST if len(asked) < 3 else 5

    monkeypatch.setattr(quotas, "fold", fold)
    quotas.fold_for_the_dispatcher(None)
    assert asked == [1000] * 3, "until few are left"
    monkeypatch.setattr(quotas, "fold", lambda *_, **__: asked.append(1) or quotas.FOLD_MOST)
    asked.clear()
    quotas.fold_for_the_dispatcher(None)
    assert len(asked) == 20, "and not for ever"


def test_a_price_is_on_record_in_its_normal_form(db: Database, query: Query) -> None:
    for digest in ("1", "2"):
        register_version(
            db,
            model="tiny",
            runner="fake",
            source="fake",
            digest=digest * 64,
            dtype="float32",
            context_window=512,
            actor="tests",
        )
    set_price(db, "tiny", 1, Price(Decimal("0.50"), Decimal(100), Decimal("2.5")), actor="mia")
    set_price(db, "tiny", 1, Price(Decimal(1), Decimal(2), Decimal(3)), actor="mia")
    told = query("SELECT resource, detail, before_hash, after_hash FROM audit_log WHERE actor = 'mia' ORDER BY id")
    first = {"input": "0.5", "cached_input": "100", "output": "2.5"}
    second = {"input": "1", "cached_input": "2", "output": "3"}
    assert told == [
        {"resource": "tiny@1", "detail": first, "before_hash": None, "after_hash": hash_of(first)},
        {"resource": "tiny@1", "detail": second, "before_hash": hash_of(first), "after_hash": hash_of(second)},
    ]
    assert query("SELECT version, input, cached_input, output FROM model_prices") == [
        {"version": 1, "input": Decimal(1), "cached_input": Decimal(2), "output": Decimal(3)}
    ]
    with pytest.raises(NotFound) as missing:
        set_price(db, "tiny", 3, Price(Decimal(1), Decimal(1), Decimal(1)), actor="mia")
    assert (missing.value.message, missing.value.code) == ("no model tiny@3", "model_not_found")
