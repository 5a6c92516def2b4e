"""Views of webhooks without services: each field of an endpoint, a secret, a delivery and its tries."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.features.webhooks.delivery_log import AttemptRecord, DeliveryRecord
from headrace.features.webhooks.endpoints import Endpoint
from headrace.features.webhooks.secrets import TenantSecret
from headrace.features.webhooks.views import (
    NewEndpoint,
    Recovery,
    SecretRotation,
    delivery_detail,
    delivery_list,
    delivery_object,
    endpoint_object,
    secret_object,
)

URL = "https://hooks.example.com/headrace"


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(1_800_000_000 + seconds, UTC)


DELIVERY = DeliveryRecord(
    id="evt_1",
    endpoint_id="we_1",
    url=URL,
    job_id="job_1",
    batch_id="batch_1",
    about_endpoint_id="we_2",
    registry_id="tiny@3",
    type="job.failed",
    state="pending",
    attempts=2,
    next_attempt_at=at(7),
    last_status=500,
    last_error="answered 500",
    created_at=at(1),
    delivered_at=None,
)
SHOWN: dict[str, Any] = {
    "id": "evt_1",
    "object": "webhook_delivery",
    "endpoint_id": "we_1",
    "url": URL,
    "job_id": "job_1",
    "batch_id": "batch_1",
    "about_endpoint_id": "we_2",
    "registry_id": "tiny@3",
    "type": "job.failed",
    "status": "pending",
    "attempts": 2,
    "next_attempt_at": 1_800_000_007,
    "last_status": 500,
    "last_error": "answered 500",
    "created_at": 1_800_000_001,
    "delivered_at": None,
}


def test_a_delivery_shows_its_next_try_only_while_it_is_pending() -> None:
    assert delivery_object(DELIVERY).model_dump() == SHOWN
    for state in ("delivered", "failed"):
        ended = delivery_object(replace(DELIVERY, state=state, delivered_at=at(8))).model_dump()
        assert ended == SHOWN | {"status": state, "next_attempt_at": None, "delivered_at": 1_800_000_008}


def test_a_delivery_shows_its_tries_with_fractions_of_a_second() -> None:
    shown = delivery_detail(DELIVERY, [AttemptRecord(1, at(2.5), 1500, 500, "answered 500")]).model_dump()
    tries = [{"attempt": 1, "at": 1_800_000_002.5, "duration_ms": 1500, "status": 500, "error": "answered 500"}]
    assert shown == SHOWN | {"tries": tries}


def test_a_page_of_deliveries_names_its_ends_and_whether_there_are_more() -> None:
    found = [replace(DELIVERY, id=f"evt_{number}") for number in range(3)]
    for limit, ids, has_more in ((2, ["evt_0", "evt_1"], True), (3, ["evt_0", "evt_1", "evt_2"], False)):
        page = delivery_list(found, limit)
        assert [one.id for one in page.data] == ids
        assert (page.first_id, page.last_id, page.has_more) == (ids[0], ids[-1], has_more)
    assert delivery_list([], 2).model_dump() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_an_endpoint_shows_why_it_is_disabled_and_its_secret_only_on_request() -> None:
    endpoint = Endpoint("we_1", "acme", URL, at(1), ("job.failed",), at(2), at(3), "failing", at(4), secret="whsec_x")
    shown = {
        "id": "we_1",
        "object": "webhook_endpoint",
        "url": URL,
        "events": ["job.failed"],
        "created_at": 1_800_000_002,
        "disabled_at": 1_800_000_003,
        "disabled_reason": "failing",
        "failing_since": 1_800_000_004,
        "old_secret_expires_at": 1_800_000_001,
        "secret": None,
    }
    assert endpoint_object(endpoint).model_dump() == shown
    assert endpoint_object(endpoint, show_secret=True).model_dump() == shown | {"secret": "whsec_x"}
    assert secret_object(TenantSecret("whsec_y", at(5))).model_dump() == {
        "object": "webhook_secret",
        "secret": "whsec_y",
        "old_secret_expires_at": 1_800_000_005,
    }


def test_bodies_have_defaults_and_bounds() -> None:
    assert NewEndpoint(url=URL).events == ("*",)
    assert SecretRotation().overlap_s == 86_400
    assert Recovery(since=0).model_dump() == {"since": 0, "until": None, "delivered_before": None, "limit": 1000}
    accepted: list[tuple[type[Any], dict[str, Any]]] = [
        (SecretRotation, {"overlap_s": 0}),
        (SecretRotation, {"overlap_s": 30 * 86_400}),
        (Recovery, {"since": (1 << 35) - 1, "limit": 1}),
        (NewEndpoint, {"url": URL, "events": ["x" * 64] * 32}),
    ]
    for body, fields in accepted:
        body(**fields)
    refused: list[tuple[type[Any], dict[str, Any]]] = [
        (SecretRotation, {"overlap_s": -1}),
        (SecretRotation, {"overlap_s": 30 * 86_400 + 1}),
        (Recovery, {"since": 1 << 35}),
        (Recovery, {"since": 0, "limit": 0}),
        (Recovery, {"since": 0, "limit": 1001}),
        (Recovery, {"since": 5, "until": 5}),
        (NewEndpoint, {"url": URL, "events": ["job.failed"] * 33}),
        (NewEndpoint, {"url": URL, "events": ["x" * 65]}),
    ]
    for body, fields in refused:
        with pytest.raises(ValidationError):
            body(**fields)
