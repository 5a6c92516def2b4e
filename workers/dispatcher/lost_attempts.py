"""Who learns of an attempt that its worker did not end: the process is dead or cut off, and tells it nobody itself."""

from collections.abc import Iterable
from typing import Any

import structlog
from celery import Celery

from headrace.store.jobs.sweeps import LostAttempt
from headrace.store.redis.celery_queue import BRIEFLY
from headrace.store.schema.job_states import JobState
from headrace.store.tracing.tracing import (
    PROVIDER,
    Attribute,
    AttributeValue,
    SpanKind,
    TraceContext,
    TraceSpan,
    attempt_span_id,
    ns_of,
)

log = structlog.get_logger(__name__)

_CODE = "worker_lost"
_ENDS: dict[JobState, tuple[str, dict[str, Any]]] = {
    JobState.QUEUED: ("task-retried", {"exception": f"JobFailed('{_CODE}')", "traceback": ""}),
    JobState.FAILED: ("task-failed", {"exception": f"JobFailed('{_CODE}')", "traceback": ""}),
    JobState.CANCELLED: ("task-revoked", {"terminated": True, "signum": None, "expired": False}),
}


class LostAttemptEvents:
    """Tells Celery's event receivers, such as Flower, how attempts of dead workers ended, in the workers' names."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, lost: Iterable[tuple[str, str, JobState]]) -> None:
        """Send an event for each job, the owner of its attempt and its new state. It is lost while Redis is away."""
        try:
            with self._app.connection_for_write(transport_options=BRIEFLY) as connection:
                for job_id, owner, state in lost:
                    kind, fields = _ENDS[state]
                    worker = owner.rsplit(":", 2)[0]  # its name in Celery; a process and its start follow
                    with self._app.events.Dispatcher(connection, hostname=worker) as events:
                        events.send(kind, uuid=job_id, **fields)
        except Exception as error:  # noqa: BLE001 - a sweep does not fail for Flower
            log.warning("event_not_sent", reason=type(error).__name__)


def lost_attempt_spans(attempt: LostAttempt, accept: TraceContext) -> tuple[TraceSpan, TraceSpan]:
    """Return the wait in the queue and the attempt, with the id that its own span would have had.

    Both are children of ``accept``.
    """
    about: dict[Attribute, AttributeValue] = {
        Attribute.JOB_ID: attempt.job_id,
        Attribute.TENANT_ID: attempt.tenant_id,
        Attribute.QUEUE: attempt.queue,
        Attribute.ATTEMPT_NUMBER: attempt.attempt,
        Attribute.ATTEMPT_EPOCH: attempt.epoch,
        Attribute.WORKER: attempt.worker,
    }
    started_ns = ns_of(attempt.started_at)
    queue = TraceSpan(
        "queue",
        accept.child(),
        accept.span_id,
        ns_of(attempt.requeued_at or attempt.created_at),
        started_ns,
        attributes=about,
    )
    before = accept.child(attempt_span_id(attempt.job_id, attempt.epoch - 1))
    lost = TraceSpan(
        name=f"lost attempt {attempt.model}",
        context=accept.child(attempt_span_id(attempt.job_id, attempt.epoch)),
        parent_span_id=accept.span_id,
        start_ns=started_ns,
        end_ns=ns_of(attempt.ended_at),
        kind=SpanKind.CONSUMER,
        attributes={
            **about,
            Attribute.ATTEMPT_OUTCOME: _CODE,
            Attribute.PROVIDER: PROVIDER,
            Attribute.REQUEST_MODEL: attempt.model,
        },
        links=() if attempt.requeued_at is None else (before,),
        error=_CODE,
    )
    return queue, lost
