"""The spans of an attempt that its worker did not end: the process is dead or cut off, and writes none itself."""

from headrace.store.jobs.sweeps import LostAttempt
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

_CODE = "worker_lost"


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
