"""The spans that the API writes: of a request, and of the acceptance of a job."""

from starlette.datastructures import Headers
from starlette.types import Scope

from headrace.store.jobs.jobs import NewJob
from headrace.store.tracing.tracing import (
    Attribute,
    AttributeValue,
    SpanKind,
    TraceContext,
    TraceSpan,
    Tracing,
    now_ns,
    read_traceparent,
)

_DEFECT = 500
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class RequestTrace:
    """The trace of one request. A request that may change something has a span; reads have none: callers poll."""

    def __init__(self, tracing: Tracing, scope: Scope) -> None:
        self._tracing = tracing
        self._scope = scope
        self._caller = read_traceparent(Headers(scope=scope).get("traceparent"))
        self._has_span = tracing.is_on and scope["method"] in _WRITES and scope["path"].startswith("/v1/")
        self._start_ns = now_ns()
        self.context = tracing.begin(self._caller) if self._has_span else self._caller

    @property
    def trace_id(self) -> dict[str, str]:
        """The id of the trace for the log, if there is a trace."""
        return {} if self.context is None else {"trace_id": self.context.trace_id}

    def record(self, request_id: str, status: int) -> None:
        """Write the span of the request, which has ended. ``status`` 0: the caller got no answer."""
        if not self._has_span or self.context is None:
            return
        method, route = self._scope["method"], getattr(self._scope.get("route"), "path", None)
        attributes: dict[Attribute, AttributeValue] = {Attribute.HTTP_METHOD: method, Attribute.REQUEST_ID: request_id}
        attributes |= {Attribute.HTTP_STATUS: status} if status else {}
        attributes |= {Attribute.HTTP_ROUTE: route} if route else {}
        self._tracing.record(
            TraceSpan(
                name=f"{method} {route}" if route else method,
                context=self.context,
                parent_span_id=None if self._caller is None else self._caller.span_id,
                start_ns=self._start_ns,
                end_ns=now_ns(),
                kind=SpanKind.SERVER,
                attributes=attributes,
                error=str(status) if status >= _DEFECT else None,
            )
        )


def record_accept(
    tracing: Tracing,
    job: NewJob | None,
    start_ns: int,
    *,
    parent: TraceContext | None = None,
    batch_id: str | None = None,
    link: TraceContext | None = None,
) -> None:
    """Write the span of the acceptance of a job, which ends now: the parent of the job's other spans.

    ``job``: None if none was stored. ``parent``: the request's span. A line of a batch has none, and a ``link`` to the
    request that made the batch.
    """
    context = read_traceparent(None if job is None else job.traceparent) if tracing.is_on else None
    if job is None or context is None:
        return
    attributes: dict[Attribute, AttributeValue] = {
        Attribute.JOB_ID: job.id,
        Attribute.TENANT_ID: job.tenant_id,
        Attribute.QUEUE: job.queue,
        Attribute.SERVICE_CLASS: job.service_class.value,
        Attribute.REQUEST_MODEL: job.model,
    }
    if batch_id is not None:
        attributes[Attribute.BATCH_ID] = batch_id
    tracing.record(
        TraceSpan(
            name="accept",
            context=context,
            parent_span_id=None if parent is None else parent.span_id,
            start_ns=start_ns,
            end_ns=now_ns(),
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            links=() if link is None else (link,),
        )
    )
