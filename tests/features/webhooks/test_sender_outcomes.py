"""What a sender stores, counts and says of each answer, with an outbox and receivers that a test controls."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.features.webhooks import outbox
from headrace.features.webhooks.metrics import WebhookMetrics
from headrace.features.webhooks.outbox import Delivery
from headrace.features.webhooks.sender import WebhookSender
from headrace.store.calls.ssrf_guard import CallFailed, CallTimedOut, Reply
from headrace.store.errors import Unavailable
from headrace.store.metrics.registry import new_registry
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import OFF, TraceSpan, Tracing
from tests.features.webhooks.test_deliveries import SENT
from tests.processes import wait_for

ANY: Any = None
TRACED = replace(SENT, traceparent="00-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-01")


class Outbox:
    """Due deliveries, given out once; and what was recorded of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *due: Delivery) -> None:
        self.due = [*due]
        self.taken: list[tuple[int, float, frozenset[str], frozenset[str]]] = []
        self.told: list[tuple[Any, ...]] = []
        self.disabled: str | None = None
        self.lock = threading.Lock()
        monkeypatch.setattr(outbox, "take_due", self.take)
        monkeypatch.setattr(outbox, "postpone", self.postpone)
        monkeypatch.setattr(outbox, "record_delivered", lambda _db, one, result: self.note("delivered", one, result))
        monkeypatch.setattr(outbox, "record_refused", lambda _db, one: self.note("refused", one, None))
        monkeypatch.setattr(outbox, "record_failed", self.failed)
        monkeypatch.setattr(random, "random", lambda: 0.5)

    def take(self, _db: Any, limit: int, lease_s: float, *, busy: Any, busy_tenants: Any) -> list[Delivery]:
        with self.lock:
            self.taken.append((limit, lease_s, frozenset(busy), frozenset(busy_tenants)))
            given, self.due = self.due, []
        return given

    def postpone(self, _db: Any, ids: list[str], by_s: float) -> None:
        if ids:
            self.told.append(("postponed", ids, by_s))

    def note(self, verb: str, delivery: Delivery, result: Any, **more: Any) -> None:
        self.told.append((verb, delivery.id, None if result is None else (result.status, result.error), more))

    def failed(self, _db: Any, delivery: Delivery, result: Any, **more: Any) -> str | None:
        self.note("failed", delivery, result, **more)
        return self.disabled


class Client:
    """Receivers that answer as a test says."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [*answers]
        self.asked: list[tuple[str, float]] = []

    def post(self, url: str, *, headers: Any, body: bytes, timeout_s: float) -> Reply:
        self.asked.append((url, timeout_s))
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        reply: Reply = found
        return reply


class Recording(Tracing):
    is_on = True

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []

    def record(self, span: TraceSpan) -> None:
        self.spans.append(span)


@contextmanager
def sending(client: Client, metrics: WebhookMetrics, tracing: Tracing, **changes: Any) -> Iterator[WebhookSender]:
    settings = Settings(webhook_timeout_s=3.0, webhook_concurrency=1, webhook_disable_after_s=500.0, **changes)
    given: Any = client
    sender = WebhookSender(ANY, settings, given, metrics=metrics, tracing=tracing)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop(30)


def counted(metrics: WebhookMetrics) -> dict[str, float]:
    found = {
        name: metrics.registry.get_sample_value("headrace_webhook_attempts_total", {"outcome": name})
        for name in ("delivered", "refused", "unanswered")
    }
    found["given up"] = metrics.registry.get_sample_value("headrace_webhooks_failed_total")
    found["disabled"] = metrics.registry.get_sample_value("headrace_webhook_endpoints_disabled_total")
    found["lag"] = metrics.registry.get_sample_value("headrace_webhook_lag_seconds_count")
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("answer", "attempt", "recorded", "counts"),
    [
        (Reply(204, {}), 1, ("delivered", (204, None), {}), {"delivered": 1, "lag": 1}),
        (Reply(500, {}), 2, ("failed", (500, "answered 500"), {"retry_in_s": 300.0}), {"refused": 1}),
        (
            Reply(503, {"retry-after": "900"}),
            2,
            ("failed", (503, "answered 503"), {"retry_in_s": 900.0}),
            {"refused": 1},
        ),
        (Reply(410, {}), 1, ("failed", (410, "answered 410"), {"retry_in_s": None}), {"refused": 1, "given up": 1}),
        (Reply(500, {}), 10, ("failed", (500, "answered 500"), {"retry_in_s": None}), {"refused": 1, "given up": 1}),
        (CallTimedOut("late"), 1, ("failed", (None, "no answer within 3 s"), {"retry_in_s": 5.0}), {"unanswered": 1}),
        (CallFailed("no route"), 1, ("failed", (None, "no route"), {"retry_in_s": 5.0}), {"unanswered": 1}),
        (KeyError("secret"), 1, ("failed", (None, "could not be sent"), {"retry_in_s": 5.0}), {"unanswered": 1}),
    ],
)
def test_each_answer_is_recorded_and_counted(
    monkeypatch: pytest.MonkeyPatch, answer: Any, attempt: int, recorded: tuple[Any, ...], counts: dict[str, float]
) -> None:
    box = Outbox(monkeypatch, replace(TRACED, attempt=attempt))
    metrics, tracing, client = WebhookMetrics(new_registry(OFF)), Recording(), Client(answer)
    verb, result, more = recorded
    patience = {} if verb == "delivered" else {"patience_s": 500.0}
    with sending(client, metrics, tracing):
        wait_for(lambda: counted(metrics), "it is counted")
    assert box.told[0] == (verb, "evt_1", result, {**more, **patience})
    assert (counted(metrics), client.asked) == (counts, [(SENT.url, 3.0)])
    assert [span.name for span in tracing.spans] == ["webhook"]
    # One of one sender for each receiver; all 16 of a take, and the sender's own call, fit the lease.
    assert box.taken[0] == (16, 3.0 * 18, frozenset(), frozenset())


def test_a_disabled_endpoint_is_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(monkeypatch, SENT, replace(SENT, id="evt_2", endpoint_id="whe_2", is_refused=True))
    box.disabled = "nothing reached it for days"
    metrics = WebhookMetrics(new_registry(OFF))
    with capture_logs() as logs, sending(Client(Reply(500, {})), metrics, Recording()):
        wait_for(lambda: len(box.told) == 2, "both are recorded")
        wait_for(lambda: "disabled" in counted(metrics), "it is counted")
    assert [(verb, one) for verb, one, *_ in box.told] == [("failed", "evt_1"), ("refused", "evt_2")]
    (said,) = [line for line in logs if line["event"] == "webhook.endpoint_disabled"]
    assert (said["endpoint_id"], said["reason"]) == ("whe_1", "nothing reached it for days")
    (failed,) = [line for line in logs if line["event"] == "webhook.failed"]
    told = {name: failed[name] for name in ("delivery_id", "subject_id", "attempt", "status", "error")}
    assert told == {
        "delivery_id": "evt_1",
        "subject_id": "job_1",
        "attempt": 1,
        "status": 500,
        "error": "answered 500",
    }


def test_what_waits_for_an_overloaded_receiver_is_given_back_with_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [replace(SENT, id=f"evt_{number}") for number in (2, 3)]
    box = Outbox(monkeypatch, SENT, *others)
    with sending(Client(Reply(429, {"retry-after": "40"})), WebhookMetrics(new_registry(OFF)), Recording()):
        wait_for(lambda: len(box.told) == 2, "the rest is given back")
    verb, ids, by_s = next(one for one in box.told if one[0] == "postponed")
    assert (verb, ids) == ("postponed", ["evt_2", "evt_3"])
    assert 39.0 < by_s <= 40.0


def test_a_store_that_is_away_loses_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(monkeypatch, SENT)

    def away(*_: Any) -> None:
        with box.lock:
            box.due = [replace(SENT, id="evt_2")]
        monkeypatch.setattr(outbox, "record_delivered", lambda _db, one, result: box.note("delivered", one, result))
        raise Unavailable("Postgres is away")

    monkeypatch.setattr(outbox, "record_delivered", away)
    with capture_logs() as logs, sending(Client(*[Reply(200, {})] * 2), WebhookMetrics(new_registry(OFF)), Recording()):
        wait_for(lambda: box.told, "the next one is sent")
    assert [one for _, one, *_ in box.told] == ["evt_2"]
    (said,) = [line for line in logs if line["event"] == "webhook.settle_failed"]
    assert (said["delivery_id"], said["error"]) == ("evt_1", "Postgres is away")
