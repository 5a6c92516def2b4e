"""Keys, usage and audit events as an organization sees them, field by field, and the bounds of bodies. No server."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from headrace.features.limits import usage_views
from headrace.features.limits.limit_routes import LimitValues
from headrace.features.limits.usage_routes import UsageQuery, Width
from headrace.features.retention.retention import LONGEST_S
from headrace.features.retention.retention_routes import RetentionValues
from headrace.producer_api.organization.key_views import (
    KeyPatch,
    KeyRequest,
    KeyRotation,
    issued_key_object,
    key_list,
    key_object,
    rotated_key_object,
)
from headrace.store.errors import InvalidRequest
from headrace.store.tenants.api_key_admin import ApiKey, IssuedKey, Unchanged
from headrace.store.tenants.api_keys import Rights
from headrace.store.tenants.usage import Dimension, TimeBuckets, UsageGroup
from tests.refusals import Naming

AT = datetime(2026, 11, 25, tzinfo=UTC)
DAY_S = 86_400
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LIMITS: Any = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
KEPT = Unchanged.UNCHANGED


def key(**changes: Any) -> ApiKey:
    fields: dict[str, Any] = {
        "id": "key_1",
        "name": "ci",
        "rights": Rights(frozenset(["jobs:write", "jobs:read"]), frozenset(["b", "a"]), AT + DAY),
        "replaced_by": "key_2",
        "created_at": AT,
        "last_used_at": AT + MINUTE,
        "revoked_at": AT + HOUR,
    }
    return ApiKey(**fields | changes)


def test_a_key_is_shown_without_its_secret() -> None:
    assert key_object(key()).model_dump() == {
        "id": "key_1",
        "object": "organization.api_key",
        "name": "ci",
        "redacted_value": "hr_1_…",
        "scopes": ["jobs:read", "jobs:write"],
        "models": ["a", "b"],
        "created_at": 1795564800,
        "expires_at": 1795651200,
        "last_used_at": 1795564860,
        "revoked_at": 1795568400,
        "replaced_by": "key_2",
    }
    bare = key(rights=Rights(frozenset(["admin"])), replaced_by=None, last_used_at=None, revoked_at=None)
    assert key_object(bare).model_dump() == {
        "id": "key_1",
        "object": "organization.api_key",
        "name": "ci",
        "redacted_value": "hr_1_…",
        "scopes": ["admin"],
        "models": None,
        "created_at": 1795564800,
        "expires_at": None,
        "last_used_at": None,
        "revoked_at": None,
        "replaced_by": None,
    }
    issued = IssuedKey(bare, "hr_1_secret")
    assert issued_key_object(issued).model_dump() == {**key_object(bare).model_dump(), "value": "hr_1_secret"}
    rotated = rotated_key_object(key(id="key_0"), issued).model_dump()
    assert (rotated["id"], rotated["value"], rotated["replaces"]["id"]) == ("key_1", "hr_1_secret", "key_0")


def test_pages_of_keys() -> None:
    found = [key(id=f"key_{number}") for number in range(3)]
    shown = [key_list(found, limit).model_dump(exclude={"data"}) for limit in (2, 3)]
    assert shown == [
        {"object": "list", "first_id": "key_0", "last_id": "key_1", "has_more": True},
        {"object": "list", "first_id": "key_0", "last_id": "key_2", "has_more": False},
    ]
    assert [one.id for one in key_list(found, 2).data] == ["key_0", "key_1"]
    assert key_list([], 2).model_dump() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_a_request_for_a_key() -> None:
    body = {"name": "x", "scopes": ["jobs:read"]}
    assert KeyRequest.model_validate(body).wanted.until is None
    assert KeyRequest.model_validate(body | {"expires_in_s": 60}).wanted.until == 60.0
    until = KeyRequest.model_validate(body | {"expires_at": 1_800_000_000, "models": ["m"]}).wanted
    assert (until.until, until.models, until.scopes) == (
        datetime.fromtimestamp(1_800_000_000, UTC),
        frozenset(["m"]),
        frozenset(["jobs:read"]),
    )
    nothing = KeyPatch().change
    assert (nothing.name, nothing.scopes, nothing.models, nothing.until) == (KEPT, KEPT, KEPT, KEPT)
    freed = KeyPatch.model_validate({"name": "x", "scopes": ["admin"], "models": None, "expires_at": None}).change
    assert (freed.name, freed.scopes, freed.models, freed.until) == ("x", frozenset(["admin"]), None, None)
    assert KeyPatch(name="x").change.until is KEPT
    assert (KeyRotation().overlap_s, KeyRotation().until) == (86_400, KEPT)


ASKED = {"name": "x", "scopes": ["jobs:read"]}
REFUSED: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (KeyRequest, ASKED | {"name": ""}),
    (KeyRequest, ASKED | {"name": "x" * 201}),
    (KeyRequest, ASKED | {"scopes": []}),
    (KeyRequest, ASKED | {"scopes": ["jobs:read"] * 33}),
    (KeyRequest, ASKED | {"models": []}),
    (KeyRequest, ASKED | {"models": ["x"] * 101}),
    (KeyRequest, ASKED | {"models": ["x" * 129]}),
    (KeyRequest, ASKED | {"expires_in_s": 0}),
    (KeyRequest, ASKED | {"expires_in_s": 10 * 365 * 86_400 + 1}),
    (KeyRequest, ASKED | {"expires_at": 0}),
    (KeyRequest, ASKED | {"expires_at": 1 << 35}),
    (KeyRequest, ASKED | {"expires_at": 1_800_000_000, "expires_in_s": 60}),
    (KeyRotation, {"overlap_s": -1}),
    (KeyRotation, {"overlap_s": 30 * 86_400 + 1}),
    (KeyRotation, {"overlap_s": "60"}),
    (LimitValues, {"requests_per_minute": 0}),
    (LimitValues, {"input_tokens_per_minute": 0}),
    (LimitValues, {"concurrent_jobs": -1}),
    (LimitValues, {"queued_tokens": (1 << 53) + 1}),
    (LimitValues, {"monthly_cost": -0.5}),
    (LimitValues, {"monthly_cost": float("inf")}),
    (LimitValues, {"monthly_cost": "1"}),
    (LimitValues, {"live_batches": 1.5}),
    (LimitValues, {"streams": 1}),
    (RetentionValues, {"inputs_days": -1}),
    (RetentionValues, {"outputs_days": LONGEST_S / DAY_S + 1}),
    (RetentionValues, {"files_days": "1"}),
    (RetentionValues, {"inputs_s": 1}),
]
ACCEPTED: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (KeyRequest, ASKED | {"name": "x" * 200, "scopes": ["a"] * 32, "models": ["x" * 128] * 100}),
    (KeyRequest, ASKED | {"expires_in_s": 10 * 365 * 86_400}),
    (KeyRequest, ASKED | {"expires_at": (1 << 35) - 1}),
    (KeyRotation, {"overlap_s": 0}),
    (KeyRotation, {"overlap_s": 30 * 86_400, "expires_in_s": 1}),
    (LimitValues, {"requests_per_minute": 1, "input_tokens_per_minute": 1, "concurrent_jobs": 0, "queued_tokens": 0}),
    (LimitValues, {"monthly_cost": 0.0, "live_batches": 0, "concurrent_streams": 0}),
    (RetentionValues, {"inputs_days": 0.0, "outputs_days": 0.5, "deliveries_days": 1, "files_days": LONGEST_S / DAY_S}),
]


def test_bodies_within_their_bounds_are_accepted_and_others_refused(subtests: pytest.Subtests) -> None:
    for kind, body in ACCEPTED:
        kind.model_validate(body)
    for number, (kind, body) in enumerate(REFUSED):
        with subtests.test(kind.__name__, number=number), pytest.raises(ValidationError):
            kind.model_validate(body)


def query(width: Width, start_s: int, end_s: int | None = None, **changes: Any) -> UsageQuery:
    asked: dict[str, Any] = {"limit": None, "page": None, "group_by": (), "only": {}}
    return UsageQuery(start_s=start_s, end_s=end_s, width=width, **asked | changes)


@pytest.mark.parametrize(
    ("asked", "span", "next_page"),
    [
        (query("1d", 86_400, 2 * 86_400), TimeBuckets(86_400, 86_400, 1), None),
        (query("1d", 86_399, 86_401), TimeBuckets(0, 86_400, 2), None),
        (query("1h", 3600, None), TimeBuckets(3600, 3600, 2), None),
        (query("1d", 0, 30 * 86_400), TimeBuckets(0, 86_400, 7), "page_604800"),
        (query("1d", 0, 30 * 86_400, page="page_604800", limit=31), TimeBuckets(604_800, 86_400, 23), None),
        (query("1m", 0, 7200), TimeBuckets(0, 60, 60), "page_3600"),
        (query("1h", 0, 86_400 * 2), TimeBuckets(0, 3600, 24), "page_86400"),
        (query("1m", 60, 300, limit=2), TimeBuckets(60, 60, 2), "page_180"),
        (query("1m", 60, 300, limit=4), TimeBuckets(60, 60, 4), None),
        (query("1m", 60, 300, limit=2, page="page_240"), TimeBuckets(240, 60, 1), None),
        (query("1m", 60, 300, limit=1440), TimeBuckets(60, 60, 4), None),
    ],
)
def test_a_time_range_is_whole_buckets(asked: UsageQuery, span: TimeBuckets, next_page: str | None) -> None:
    assert asked.span(LIMITS, 10_799.5) == (span, next_page)


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        (query("1m", 0, 60, limit=1441), "limit", "1440"),
        (query("1h", 0, 60, limit=169), "limit", "168"),
        (query("1m", 60, 60), "end_time", "`start_time`"),
        (query("1m", 60, 300, page="page_300"), "page", "`next_page`"),
        (query("1m", 60, 300, page="page_0"), "page", "`next_page`"),
        (query("1m", 60, 300, page="page_61"), "page", "`next_page`"),
        (query("1m", 60, 300, page="120"), "page", "`next_page`"),
    ],
)
def test_a_time_range_that_makes_no_sense(asked: UsageQuery, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        asked.span(LIMITS, 0.0)
    assert (raised.value.param, raised.value.message) == (param, Naming(message))


def spent(bucket: int, **by: Any) -> UsageGroup:
    return UsageGroup(bucket, {Dimension(name): value for name, value in by.items()}, 2, 30, 10, 5, Decimal("0.25"))


SPAN = TimeBuckets(60, 60, 3)
RESULT_OF_COMPLETIONS = {
    "project_id": None,
    "user_id": None,
    "api_key_id": None,
    "object": "organization.usage.completions.result",
    "input_tokens": 30,
    "input_cached_tokens": 10,
    "output_tokens": 5,
    "num_model_requests": 2,
}


def test_usage_is_shown_in_its_bucket() -> None:
    found = [spent(0, model="m@1", class_rank=0, is_batch=False), spent(2, class_rank=2, is_batch=True)]
    assert usage_views.page(SPAN, found, usage_views.completions, "page_240").model_dump() == {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": 60,
                "end_time": 120,
                "results": [
                    {**RESULT_OF_COMPLETIONS, "model": "m@1", "batch": False, "service_tier": "priority"},
                ],
            },
            {"object": "bucket", "start_time": 120, "end_time": 180, "results": []},
            {
                "object": "bucket",
                "start_time": 180,
                "end_time": 240,
                "results": [{**RESULT_OF_COMPLETIONS, "model": None, "batch": True, "service_tier": "flex"}],
            },
        ],
        "has_more": True,
        "next_page": "page_240",
    }
    assert usage_views.page(SPAN, [], usage_views.costs, None).has_more is False


def test_usage_of_each_kind_has_its_fields() -> None:
    assert usage_views.completions(spent(0, class_rank=1)).service_tier == "default"
    assert usage_views.embeddings(spent(0, user_id="u", project_id="p", api_key_id="k")).model_dump() == {
        "project_id": "p",
        "user_id": "u",
        "api_key_id": "k",
        "object": "organization.usage.embeddings.result",
        "input_tokens": 30,
        "num_model_requests": 2,
        "model": None,
    }
    assert usage_views.costs(spent(0, model="m@1", user_id="u")).model_dump() == {
        "project_id": None,
        "user_id": "u",
        "api_key_id": None,
        "object": "organization.costs.result",
        "amount": {"value": 0.25, "currency": "usd"},
        "line_item": "m@1",
    }
