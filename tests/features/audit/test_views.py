"""Audit events as the API shows them."""

from dataclasses import replace
from typing import Any

import httpx2
import pytest

from headrace.features.audit.views import entry_id, event_page
from headrace.store.audit_log import AuditEntry
from headrace.store.errors import InvalidRequest
from tests.features.limits.test_organization_views import AT
from tests.features.limits.test_own_limits_routes import BASE, admin

__all__ = ["admin"]


def entry(**changes: Any) -> AuditEntry:
    fields: dict[str, Any] = {
        "id": 7,
        "tenant_id": "t",
        "actor": "key_1",
        "action": "api_key.created",
        "resource": "key_2",
        "detail": {"scopes": ["admin"]},
        "before_hash": None,
        "after_hash": "ab",
        "request_id": "req_1",
        "address": "127.0.0.1",
        "at": AT,
        "seq": 3,
        "prev_hash": "00",
        "hash": "11",
    }
    return AuditEntry(**fields | changes)


def test_a_page_of_events() -> None:
    changed = entry(id=6, action="limits.set", actor="ann@host", address="ann@host")
    assert event_page([entry(), changed], has_more=True).model_dump() == {
        "object": "list",
        "data": [
            {
                "id": "audit_7",
                "object": "organization.audit_log",
                "type": "api_key.created",
                "effective_at": 1795564800,
                "actor": {"type": "api_key", "api_key": {"id": "key_1", "type": "service_account"}, "session": None},
                "ip_address": "127.0.0.1",
                "request_id": "req_1",
                "before_hash": None,
                "after_hash": "ab",
                "chain": {"seq": 3, "prev_hash": "00", "hash": "11"},
                "api_key.created": {"id": "key_2", "data": {"scopes": ["admin"]}},
            },
            {
                "id": "audit_6",
                "object": "organization.audit_log",
                "type": "limits.set",
                "effective_at": 1795564800,
                "actor": {
                    "type": "session",
                    "api_key": None,
                    "session": {"user": {"id": "ann@host"}, "ip_address": "ann@host"},
                },
                "ip_address": "ann@host",
                "request_id": "req_1",
                "before_hash": None,
                "after_hash": "ab",
                "chain": {"seq": 3, "prev_hash": "00", "hash": "11"},
                "limits.set": {"id": "key_2", "changes_requested": {"scopes": ["admin"]}},
            },
        ],
        "first_id": "audit_7",
        "last_id": "audit_6",
        "has_more": True,
    }


def test_an_event_shows_its_detail_if_it_has_one() -> None:
    (bare,) = event_page([replace(entry(), detail={})], has_more=False).model_dump()["data"]
    assert bare["api_key.created"] == {"id": "key_2"}
    (updated,) = event_page([entry(action="api_key.updated")], has_more=False).model_dump()["data"]
    assert updated["api_key.updated"] == {"id": "key_2", "changes_requested": {"scopes": ["admin"]}}


def test_a_page_without_events() -> None:
    assert event_page([], has_more=False).model_dump() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_the_id_of_an_event_is_a_number() -> None:
    assert [entry_id(one, "after") for one in (None, "audit_42", "audit_" + "9" * 18)] == [None, 42, 10**18 - 1]
    for wrong in ("42", "audit_", "audit_x", "audit_-1", "audit_\u0661", "audit_" + "9" * 19):
        with pytest.raises(InvalidRequest, match=r"`after` .*audit_42"):
            entry_id(wrong, "after")


def test_audit_events_are_listed_between_two(admin: httpx2.Client) -> None:
    for _ in range(2):
        admin.post("/v1/queues/tiny@1/pause").raise_for_status()
        admin.post("/v1/queues/tiny@1/resume").raise_for_status()
    path = f"{BASE}/audit_logs"
    everything = admin.get(path).json()["data"]
    ids = [one["id"] for one in everything]
    assert ids == sorted(ids, key=lambda one: entry_id(one, "after") or 0, reverse=True)

    def page(**asked: Any) -> tuple[list[str], bool]:
        told = admin.get(path, params=asked).raise_for_status().json()
        assert (told["first_id"], told["last_id"]) == (told["data"][0]["id"], told["data"][-1]["id"])
        return [one["id"] for one in told["data"]], told["has_more"]

    assert page(limit=2) == (ids[:2], True)
    assert page(limit=2, after=ids[1]) == (ids[2:4], True)
    assert page(after=ids[1]) == (ids[2:], False)
    assert page(limit=2, before=ids[3]) == (ids[1:3], True)
    assert page(before=ids[3]) == (ids[:3], False)
    assert page(limit=1, after=ids[0], before=ids[3]) == (ids[1:2], True)
    paused = [one["id"] for one in everything if one["type"] == "queue.paused"]
    assert page(**{"event_types[]": "queue.paused"}) == page(event_types="queue.paused") == (paused, False)
    at = everything[0]["effective_at"]
    assert page(**{"effective_at[gte]": 0, "effective_at[gt]": 1, "effective_at[lt]": at + 9})[0] == ids
    assert admin.get(path, params={"effective_at[gte]": 0, "effective_at[gt]": at}).json()["data"] == []
    assert admin.get(path, params={"effective_at[lt]": at + 9, "effective_at[lte]": 0}).json()["data"] == []
