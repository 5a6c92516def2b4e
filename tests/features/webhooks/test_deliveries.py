"""The form of an event, the verdict on an answer and the span of a delivery, value by value."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import standardwebhooks

from headrace.features.webhooks.delivery_span import delivery_span
from headrace.features.webhooks.outbox import AttemptResult, Delivery
from headrace.features.webhooks.sender import DeliveryResult, body_of, headers_of, judge, retry_in_s
from headrace.store.calls.ssrf_guard import Reply
from headrace.store.schema.job_states import JobState
from headrace.store.tracing.tracing import SpanKind, TraceContext, ns_of

AT = datetime(2026, 11, 25, 12, 0, 0, 250_000, tzinfo=UTC)
NOW = datetime(2026, 11, 25, 12, 1, 30, 900_000, tzinfo=UTC)
SENT = Delivery(
    id="evt_1",
    tenant_id="ten_1",
    endpoint_id="whe_1",
    url="https://user:secret@Hooks.example.com:8443/in/token?x=1",
    secrets=("whsec_MDEyMw==", "whsec_NDU2Nw=="),
    type="job.succeeded",
    subject_id="job_1",
    status=JobState.SUCCEEDED,
    created_at=AT,
    attempt=1,
    num_tries=4,
)


@pytest.mark.parametrize(
    ("kind", "subject", "data"),
    [
        ("job.succeeded", "job_1", {"id": "job_1", "object": "job", "status": "succeeded"}),
        ("batch.completed", "batch_1", {"id": "batch_1", "object": "batch", "status": "succeeded"}),
        ("response.failed", "job_7", {"id": "resp_7", "object": "response", "status": "failed"}),
        ("webhook.test", "whe_1", {"id": "whe_1", "object": "webhook_endpoint", "status": "succeeded"}),
        ("webhook_endpoint.disabled", "whe_1", {"id": "whe_1", "object": "webhook_endpoint", "status": "succeeded"}),
        ("version.rejected", "tiny@2", {"id": "tiny@2", "object": "model_version", "status": "succeeded"}),
        ("rollout.promoted", "rol_1", {"id": "rol_1", "object": "rollout", "status": "succeeded"}),
    ],
)
def test_an_event_names_its_object_and_nothing_else(kind: str, subject: str, data: dict[str, str]) -> None:
    assert json.loads(body_of(replace(SENT, type=kind, subject_id=subject))) == {
        "id": "evt_1",
        "object": "event",
        "type": kind,
        "created_at": 1_795_608_000,
        "timestamp": "2026-11-25T12:00:00.250000+00:00",
        "data": data,
    }


def test_each_secret_signs_the_newest_first() -> None:
    body = b'{"x":1}'
    signed = [standardwebhooks.Webhook(secret).sign("evt_1", NOW, body.decode()) for secret in SENT.secrets]
    assert headers_of(SENT, body, NOW) == {
        "content-type": "application/json",
        "user-agent": "Headrace-Webhooks/1",
        "webhook-id": "evt_1",
        "webhook-timestamp": "1795608090",
        "webhook-signature": " ".join(signed),
    }


@pytest.mark.parametrize(
    ("status", "error", "is_delivered", "is_final"),
    [
        (199, "answered 199", False, False),
        (200, None, True, False),
        (299, None, True, False),
        (300, "redirected, which is not followed 300", False, False),
        (399, "redirected, which is not followed 399", False, False),
        (400, "answered 400", False, False),
        (410, "answered 410", False, True),
    ],
)
def test_any_2xx_is_a_delivery_and_gone_is_final(
    status: int, error: str | None, is_delivered: bool, is_final: bool
) -> None:
    found = judge(Reply(status, {"retry-after": "7"}), NOW)
    assert found == DeliveryResult(status, error, None if is_delivered else 7.0)
    assert (found.is_delivered, found.is_final) == (is_delivered, is_final)
    unanswered = DeliveryResult(None, "no answer")
    assert (unanswered.is_delivered, unanswered.is_final, unanswered.is_overload) == (False, False, False)


def test_a_wait_is_spread_by_a_tenth_and_a_shorter_one_that_is_asked_for_changes_nothing() -> None:
    assert [retry_in_s(2, jitter) for jitter in (0.0, 0.5, 1.0)] == [pytest.approx(at) for at in (270, 300, 330)]
    assert retry_in_s(2, 1.0, asked_s=300.0) == pytest.approx(330)
    assert retry_in_s(2, 1.0, asked_s=331.0) == 331
    assert retry_in_s(10, 0.5, asked_s=60.0) is None


@pytest.mark.parametrize(
    ("changes", "tried", "expected", "error"),
    [
        ({}, AttemptResult(NOW, 1500, 204, None), {"headrace.job.id": "job_1", "http.response.status_code": 204}, None),
        (
            {"type": "batch.failed", "subject_id": "batch_1"},
            AttemptResult(NOW, 1500, 503, "answered 503"),
            {"headrace.batch.id": "batch_1", "http.response.status_code": 503},
            "503",
        ),
        ({}, AttemptResult(NOW, 1500, None, "no answer"), {"headrace.job.id": "job_1"}, "unanswered"),
    ],
)
def test_the_span_of_a_delivery_has_the_host_alone(
    changes: dict[str, Any], tried: AttemptResult, expected: dict[str, Any], error: str | None
) -> None:
    accept = TraceContext("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", is_sampled=True)
    sent = replace(SENT, **changes)
    span = delivery_span(sent, tried, accept)
    assert dict(span.attributes) == {
        "headrace.tenant.id": "ten_1",
        "headrace.webhook.event.id": "evt_1",
        "headrace.webhook.event.type": sent.type,
        "headrace.webhook.attempt": 4,
        "http.request.method": "POST",
        "server.address": "hooks.example.com",
        **expected,
    }
    assert (span.name, span.kind, span.error) == ("webhook", SpanKind.CLIENT, error)
    assert (span.start_ns, span.end_ns - span.start_ns) == (ns_of(NOW), 1_500_000_000)
    assert (span.parent_span_id, span.context.trace_id) == (accept.span_id, accept.trace_id)
