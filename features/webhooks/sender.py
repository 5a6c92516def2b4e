"""Sends webhooks by Standard Webhooks 1.0.0: the body, the signature, the retries, and the sender threads.

The outbox is in Postgres. Due deliveries are taken with a lease, so a sender that dies loses none, and a receiver may
get an event twice with the same ``webhook-id``. ``ssrf_guard`` decides which addresses may be called, and
``receiver_fairness`` chooses the next delivery. The tenant sees only the status of a receiver's answer.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import orjson
import structlog
from standardwebhooks import Webhook

from headrace.features.webhooks import outbox
from headrace.features.webhooks.delivery_span import delivery_span
from headrace.features.webhooks.metrics import WebhookMetrics
from headrace.features.webhooks.outbox import GONE, AttemptResult, Delivery
from headrace.features.webhooks.receiver_fairness import SLOW_S, ReceiverQueues
from headrace.store.calls.receiver_breaker import ReceiverBreaker
from headrace.store.calls.ssrf_guard import CallFailed, CallTimedOut, GuardedClient, Reply
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.failpoints import failpoint
from headrace.store.jobs.responses import response_id
from headrace.store.metrics.registry import new_registry
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import OFF, Tracing, read_traceparent

log = structlog.get_logger(__name__)

RETRY_S: tuple[float, ...] = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Waits after the first, second, … ninth failed attempt; the tenth is the last. 75 h 35 min together."""

MAX_RETRY_AFTER_S = 86_400.0
_JITTER = 0.1
# Statuses of an overloaded receiver, or of a proxy before it.
_OVERLOADED = frozenset({429, 502, 503, 504})
_POLL_S = 0.2
_AFTER_ERROR_S = 1.0
# Pause of a receiver with secrets that this sender cannot decrypt: another sender, or a restart, may have the key.
_LOCKED_S = 60.0
_TAKE = 16
_MAX_WAITING = 1024


def body_of(delivery: Delivery) -> bytes:
    """Return the event's JSON. It has ids, and links to files that the job made. The receiver reads the job with its
    own key, and gets its newest state."""
    return orjson.dumps(
        {
            "id": delivery.id,
            "object": "event",
            "type": delivery.type,
            "created_at": int(delivery.created_at.timestamp()),
            "timestamp": delivery.created_at.isoformat(),
            "data": _named(delivery),
        }
    )


def _named(delivery: Delivery) -> dict[str, Any]:
    """Return the object of the event as the API names it."""
    kind, _, end = delivery.type.partition(".")
    if kind == "response":
        return {"id": response_id(delivery.subject_id), "object": "response", "status": end}
    if kind in ("webhook", "webhook_endpoint"):
        return {"id": delivery.subject_id, "object": "webhook_endpoint", "status": delivery.status}
    named = "model_version" if kind == "version" else kind
    files = {"files": list(delivery.files)} if delivery.files else {}
    return {"id": delivery.subject_id, "object": named, "status": delivery.status, **files}


def headers_of(delivery: Delivery, body: bytes, now: datetime) -> dict[str, str]:
    """Return the headers of an attempt at ``now`` (UTC), with a signature over id, time and body for each secret."""
    signatures = (Webhook(secret).sign(delivery.id, now, body.decode()) for secret in delivery.secrets)
    return {
        "content-type": "application/json",
        "user-agent": "Headrace-Webhooks/1",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds of a Retry-After header, at most a day; None without a readable one."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value[:9]), MAX_RETRY_AFTER_S)
    try:
        wait_s = (parsedate_to_datetime(value) - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)


def retry_in_s(attempt: int, jitter: float, asked_s: float | None = None) -> float | None:
    """Return the wait in seconds after failed attempt number ``attempt``; None after the last.

    ``jitter`` is from 0 to 1. A Retry-After makes the wait longer, never shorter.
    """
    if attempt > len(RETRY_S):
        return None
    planned_s = RETRY_S[attempt - 1] * (1 + _JITTER * (2 * jitter - 1))
    return max(planned_s, asked_s or 0.0)


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of an attempt. ``status`` is None without an answer; ``asked_s`` is the wait of a Retry-After
    header."""

    status: int | None
    error: str | None
    asked_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        """True for any 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """True if the receiver wants no more events."""
        return self.status == GONE

    @property
    def is_overload(self) -> bool:
        """True if the receiver should be called less often."""
        return self.status in _OVERLOADED


def judge(reply: Reply, now: datetime) -> DeliveryResult:
    """Return the result of an answer: 2xx is success; a redirect is a failure and not followed."""
    if 200 <= reply.status < 300:
        return DeliveryResult(reply.status, None)
    kind = "redirected, which is not followed" if 300 <= reply.status < 400 else "answered"
    return DeliveryResult(reply.status, f"{kind} {reply.status}", retry_after_s(reply.headers, now))


class WebhookSender:
    """Takes due deliveries and sends them on its own threads. Two senders on one database share the work.

    It polls every ``look_every_s``, and at once after ``notify_due``.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        client: GuardedClient | None = None,
        *,
        metrics: WebhookMetrics | None = None,
        look_every_s: float = _POLL_S,
        tracing: Tracing = OFF,
    ) -> None:
        self._db = db
        self._tracing = tracing
        self._metrics = metrics or WebhookMetrics(new_registry(OFF))
        self._look_every_s = look_every_s
        self._is_notified = False
        self._client = client or GuardedClient(settings)
        self._timeout_s = settings.webhook_timeout_s
        self._disable_after_s = settings.webhook_disable_after_s
        self._num_threads = settings.webhook_concurrency
        max_running = max(1, self._num_threads // 4)
        # Long enough for the full queue of a slow receiver. Afterwards the deliveries of a dead sender are due again.
        self._lease_s = settings.webhook_timeout_s * (_TAKE / max_running + 2)
        self._queues = ReceiverQueues(
            max_running=max_running,
            max_of_tenant=max(1, self._num_threads // 2),
            max_together=self._num_threads - self._num_threads // 4,
            max_slow=self._num_threads,
        )
        self._breaker = ReceiverBreaker()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads. They are daemons, so a receiver that does not answer cannot delay the end of the
        process."""
        targets: list[Callable[[], None]] = [self._take_loop, *[self._send_loop] * (2 * self._num_threads)]
        self._threads = [threading.Thread(target=target, name="webhooks", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def notify_due(self) -> None:
        """Poll now, because deliveries are due."""
        with self._changed:
            self._is_notified = True
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """Give back the waiting deliveries. Running ones may still end, or are due again later."""
        with self._changed:
            self._is_stopping = True
            untried = self._queues.drop()
            self._changed.notify_all()
        self._give_back(untried, 0.0)
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _take_loop(self) -> None:
        while not self._is_stopping:
            full: frozenset[str] = frozenset()
            silence_s = 0.0
            try:
                with self._changed:
                    full, self._is_notified = self._full(), False
                pause_s = 0.0 if self._take() else _POLL_S
                silence_s = self._look_every_s - _POLL_S if pause_s else 0.0
            except Unavailable as error:
                log.warning("webhooks.take_failed", error=error.message)
                pause_s = _AFTER_ERROR_S
            except Exception:
                log.exception("webhooks.take_failed")
                pause_s = _AFTER_ERROR_S
            has_room = partial(self._has_room_since, full)
            with self._changed:
                self._changed.wait_for(has_room, pause_s)
                if silence_s > 0:
                    self._changed.wait_for(partial(self._has_news, has_room), silence_s)
                self._changed.wait_for(lambda: self._is_stopping or self._queues.num_waiting < _MAX_WAITING)

    def _has_room_since(self, full: frozenset[str]) -> bool:
        """Return True if a queue or a tenant that was full is not full any more, or when stopping."""
        return self._is_stopping or bool(full - self._full())

    def _has_news(self, has_room: Callable[[], bool]) -> bool:
        return self._is_notified or has_room()

    def _full(self) -> frozenset[str]:
        return self._queues.full() | self._queues.full_tenants()

    def _take(self) -> int:
        """Move due deliveries into queues that are not full; return their number."""
        with self._changed:
            busy = self._queues.full() | self._breaker.blocked(time.monotonic())
            busy_tenants = self._queues.full_tenants()
        taken = outbox.take_due(self._db, _TAKE, self._lease_s, busy=busy, busy_tenants=busy_tenants)
        now = time.monotonic()
        with self._changed:
            for delivery in taken:
                if delivery.is_locked:
                    self._breaker.asked_to_wait(delivery.receiver, now, _LOCKED_S)
            # Meanwhile the sender may be stopping, or a receiver may have been paused.
            is_stopping, blocked = self._is_stopping, self._breaker.blocked(now)
            unwanted = {
                delivery: 0.0 if is_stopping else self._breaker.blocked_for_s(delivery.receiver, now)
                for delivery in taken
                if is_stopping or delivery.receiver in blocked
            }
            for delivery in taken:
                if delivery not in unwanted:
                    self._queues.add(delivery)
            self._changed.notify_all()
        for delivery, pause_s in unwanted.items():
            self._give_back([delivery], pause_s)
        return len(taken)

    def _give_back(self, deliveries: list[Delivery], wait_s: float) -> None:
        try:
            outbox.postpone(self._db, [delivery.id for delivery in deliveries], wait_s)
        except Unavailable as error:
            log.warning("webhooks.postpone_failed", num_deliveries=len(deliveries), error=error.message)

    def _send_loop(self) -> None:
        while True:
            with self._changed:
                delivery = self._queues.next(time.monotonic())
                while delivery is None and not self._is_stopping:
                    # A delivery that turns out to be slow makes room without a notification.
                    self._changed.wait(SLOW_S / 2 if self._queues.num_waiting else None)
                    delivery = self._queues.next(time.monotonic())
                if delivery is None:
                    return
                self._changed.notify_all()
            self._deliver(delivery)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            if delivery.is_refused:
                outbox.record_refused(self._db, delivery)
                return
            now, start = datetime.now(UTC), time.monotonic()
            outcome = self._try(delivery, now)
            tried = AttemptResult(now, round((time.monotonic() - start) * 1000), outcome.status, outcome.error)
            if self._tracing.is_on and (accept := read_traceparent(delivery.traceparent)) is not None:
                self._tracing.record(delivery_span(delivery, tried, accept))
            self._learn(delivery, outcome)
            self._settle(delivery, outcome, tried)
        except Unavailable as error:
            # It is due again when its lease ends; the receiver may then get it twice.
            log.warning("webhook.settle_failed", delivery_id=delivery.id, error=error.message)
        except Exception:
            # As above, but a defect: the thread must go on with other deliveries.
            log.exception("webhook.settle_failed", delivery_id=delivery.id)
        finally:
            with self._changed:
                self._queues.done(delivery, time.monotonic())
                self._changed.notify_all()

    def _try(self, delivery: Delivery, now: datetime) -> DeliveryResult:
        try:
            body = body_of(delivery)
            headers = headers_of(delivery, body, now)
            return judge(self._client.post(delivery.url, headers=headers, body=body, timeout_s=self._timeout_s), now)
        except CallTimedOut:
            return DeliveryResult(None, f"no answer within {self._timeout_s:g} s")
        except CallFailed as error:
            return DeliveryResult(None, str(error))
        except Exception:
            # A delivery that cannot be sent must not end the thread.
            log.exception("webhook.not_sent", delivery_id=delivery.id)
            return DeliveryResult(None, "could not be sent")

    def _learn(self, delivery: Delivery, outcome: DeliveryResult) -> None:
        receiver, now = delivery.receiver, time.monotonic()
        untried: list[Delivery] = []
        with self._changed:
            if outcome.status is None:
                self._breaker.failed(receiver, now)
            elif outcome.is_overload:
                self._breaker.overloaded(receiver, now)
            else:
                self._breaker.answered(receiver)
            if outcome.asked_s:
                self._breaker.asked_to_wait(receiver, now, outcome.asked_s)
            blocked_s = self._breaker.blocked_for_s(receiver, now)
            if blocked_s:
                untried = self._queues.drop(receiver)
        self._give_back(untried, blocked_s)

    def _settle(self, delivery: Delivery, outcome: DeliveryResult, tried: AttemptResult) -> None:
        fields = {"delivery_id": delivery.id, "subject_id": delivery.subject_id, "attempt": delivery.attempt}
        if outcome.is_delivered and outcome.status is not None:
            failpoint("webhook.accepted")
            outbox.record_delivered(self._db, delivery, tried)
            self._metrics.attempts.labels("delivered").inc()
            self._metrics.lag.observe((datetime.now(UTC) - delivery.created_at).total_seconds())
            log.info("webhook.delivered", status=outcome.status, **fields)
            return
        jitter = random.random()  # noqa: S311 - not a secret: it only spreads retries
        wait_s = None if outcome.is_final else retry_in_s(delivery.attempt, jitter, outcome.asked_s)
        disabled = outbox.record_failed(self._db, delivery, tried, retry_in_s=wait_s, patience_s=self._disable_after_s)
        self._metrics.attempts.labels("unanswered" if outcome.status is None else "refused").inc()
        if wait_s is None:
            self._metrics.failed.inc()
        log.info("webhook.failed", status=outcome.status, error=outcome.error, retry_in_s=wait_s, **fields)
        if disabled:
            self._metrics.endpoints_disabled.inc()
            log.warning("webhook.endpoint_disabled", endpoint_id=delivery.endpoint_id, reason=disabled)
