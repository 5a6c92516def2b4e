"""The span of one attempt to deliver a webhook."""

from urllib.parse import urlsplit

from headrace.features.webhooks.outbox import AttemptResult, Delivery
from headrace.store.tracing.tracing import Attribute, AttributeValue, SpanKind, TraceContext, TraceSpan, ns_of

_UNANSWERED = "unanswered"


def delivery_span(delivery: Delivery, tried: AttemptResult, accept: TraceContext) -> TraceSpan:
    """Return the span of an attempt, a child of ``accept``. It has the receiver's host; a path may hold a secret."""
    start_ns = ns_of(tried.at)
    attributes: dict[Attribute, AttributeValue] = {
        Attribute.TENANT_ID: delivery.tenant_id,
        Attribute.EVENT_ID: delivery.id,
        Attribute.EVENT_TYPE: delivery.type,
        Attribute.DELIVERY_ATTEMPT: delivery.num_tries,
        Attribute.HTTP_METHOD: "POST",
        Attribute.SERVER_ADDRESS: urlsplit(delivery.url).hostname or "",
    }
    attributes[Attribute.BATCH_ID if delivery.type.startswith("batch.") else Attribute.JOB_ID] = delivery.subject_id
    if tried.status is not None:
        attributes[Attribute.HTTP_STATUS] = tried.status
    return TraceSpan(
        name="webhook",
        context=accept.child(),
        parent_span_id=accept.span_id,
        start_ns=start_ns,
        end_ns=start_ns + tried.duration_ms * 1_000_000,
        kind=SpanKind.CLIENT,
        attributes=attributes,
        error=None if tried.error is None else str(tried.status or _UNANSWERED),
    )
