"""The pages of webhooks, the audit log, and keys and limits, with made-up answers: their text, and their requests."""

from typing import Any

import pytest

from benchmarks.console.chromium import Tab
from headrace.store.tenants.api_keys import SCOPES
from tests.features.console.faked_answers import JOB_ID
from tests.features.console.faked_api import NOW, click, enter, lines, open_faked, page_text, rows, sends, sent_body

pytestmark = pytest.mark.timeout(240)

ENDPOINT = {
    "id": "we_1",
    "url": "https://h.example/",
    "disabled_at": None,
    "disabled_reason": None,
    "failing_since": None,
    "events": ["job.failed", "job.succeeded"],
}
ENDPOINTS = [
    ENDPOINT,
    ENDPOINT | {"id": "we_2", "disabled_at": 5, "disabled_reason": "gone"},
    ENDPOINT | {"id": "we_3", "failing_since": NOW - 120},
]
DELIVERY = {
    "id": "whd_1", "type": "job.failed", "job_id": JOB_ID, "batch_id": None, "registry_id": None, "status": "failed",
    "attempts": 4, "url": "https://h.example/", "last_status": None, "last_error": "timeout", "created_at": NOW - 60,
}  # fmt: skip
DELIVERIES = [
    DELIVERY,
    DELIVERY | {"id": "whd_2", "job_id": None, "batch_id": "batch_1", "last_status": 500, "status": "dead"},
]


def test_the_webhooks(tab: Tab) -> None:
    answers = {
        "GET webhook_endpoints": {"data": ENDPOINTS},
        "GET webhook_deliveries": {"data": DELIVERIES, "has_more": False, "last_id": "x"},
        "POST webhook_endpoints/we_1/recover": {"queued": 3},
        "POST webhook_endpoints/we_1/test": {},
        "POST webhook_endpoints/we_2/enable": {},
        "POST webhook_deliveries/whd_1/redeliver": {},
    }
    open_faked(tab, "webhooks", answers, rows(5))
    assert lines(tab) == page_text("webhooks")
    click(tab, "Recover")
    assert sent_body(tab, "webhook_endpoints/we_1/recover") == {"since": NOW - 86_400}
    for name, path in (
        ("Test", "webhook_endpoints/we_1/test"),
        ("Enable", "webhook_endpoints/we_2/enable"),
        ("Redeliver", "webhook_deliveries/whd_1/redeliver"),
    ):
        click(tab, name)
        sends(tab, "POST", path)


AUDIT_EVENT = {
    "id": "audit_1", "object": "x", "type": "api_key.created", "effective_at": NOW,
    "actor": {"api_key": {"id": "key_1"}}, "ip_address": None, "request_id": "req_1",
    "api_key.created": {"id": "key_2"}, "chain": {}, "before_hash": None,
}  # fmt: skip
EVENT_BY_HAND = AUDIT_EVENT | {
    "id": "audit_2",
    "actor": {"type": "session", "session": {"user": {"id": "ann@host"}}},
    "ip_address": "::1",
    "note": "n",
}


def test_the_audit_log(tab: Tab) -> None:
    listed = {"data": [AUDIT_EVENT, EVENT_BY_HAND], "has_more": False, "last_id": "x"}
    open_faked(tab, "audit", {"GET organization/audit_logs": listed}, rows(2))
    assert lines(tab) == page_text("audit")
    enter(tab, {"type": " queue.paused "}, "Search")
    sends(tab, "GET", "organization/audit_logs?limit=50&event_types=queue.paused")


KEY: dict[str, Any] = {
    "id": "key_1", "name": "ci", "redacted_value": "hr_1_…", "scopes": ["jobs:read", "jobs:write"], "models": None,
    "last_used_at": NOW - 60, "revoked_at": None, "expires_at": None, "replaced_by": None,
}  # fmt: skip
KEYS = [
    KEY,
    KEY
    | {"id": "key_2", "models": ["m", "n"], "expires_at": NOW + 86_400, "replaced_by": "key_9", "last_used_at": None},
    KEY | {"id": "key_3", "expires_at": NOW - 1},
    KEY | {"id": "key_4", "revoked_at": NOW - 60},
]
LIMITS = {
    "requests_per_minute": 10, "input_tokens_per_minute": None, "concurrent_jobs": 4, "queued_tokens": 0,
    "monthly_cost": 2.5, "live_batches": None,
}  # fmt: skip
USED = {
    "requests": 9, "input_tokens": None, "concurrent_jobs": 1, "queued_tokens": 12_345, "cost": 5.0, "live_batches": 0,
}  # fmt: skip


def test_keys_and_limits(tab: Tab) -> None:
    answers = {
        "GET organization/api_keys": {"data": KEYS, "has_more": False, "last_id": "key_4"},
        "GET organization/limits": {"limits": LIMITS, "used": USED},
        "GET models": {"data": [{"root": "n"}, {"root": "m"}, {"root": "n"}]},
        "POST organization/api_keys": KEY | {"value": "hr_1_secret"},
        "POST organization/api_keys/key_1/rotate": KEY | {"value": "hr_2_secret", "name": "next"},
        "DELETE organization/api_keys/key_1": {},
    }
    open_faked(tab, "keys", answers, f"{rows(4)} && document.querySelector('dl') !== null")
    assert lines(tab) == page_text("keys_and_limits")
    assert tab.run("[...document.querySelectorAll('.split i')].map((one) => [one.className, one.style.width])") == [
        ["c2", "90%"],
        ["c1", "25%"],
        ["c1", "0%"],
        ["c2", "100%"],
    ]
    click(tab, "Revoke")
    sends(tab, "DELETE", "organization/api_keys/key_1")
    click(tab, "Rotate")
    sends(tab, "POST", "organization/api_keys/key_1/rotate")
    tab.wait("document.querySelector('dialog pre')?.innerText === 'hr_2_secret'")
    click(tab, "Close")
    click(tab, "New key")
    tab.wait("document.querySelectorAll('dialog [name=model]').length === 2")
    assert tab.run("[...document.querySelectorAll('dialog [name=scope]')].map((one) => one.value)") == sorted(SCOPES)
    tab.run("document.querySelector('dialog [name=model][value=n]').click()")
    enter(tab, {"name": "x", "days": "2"}, "Make the key")
    made = sent_body(tab, "organization/api_keys")
    assert made == {"name": "x", "scopes": ["jobs:read", "jobs:write"], "models": ["n"], "expires_in_s": 172_800}
    assert tab.wait("document.querySelector('dialog pre')?.innerText") == "hr_1_secret"
