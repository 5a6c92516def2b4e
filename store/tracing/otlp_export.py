"""Exports spans by OTLP over HTTP, with OpenTelemetry's SDK: its sampler, its queue and thread, its exporter.

A span never waits: the queue is bounded, and what does not fit is dropped and counted.
"""

import logging
import threading
from collections.abc import Sequence
from importlib.metadata import version

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.status import Status, StatusCode

from headrace.store.tracing.otel_settings import OtelSettings
from headrace.store.tracing.tracing import (
    STOP_S,
    Attribute,
    SpanCounts,
    TraceContext,
    TraceSpan,
    Tracing,
    new_span_id,
    new_trace_id,
)

log = structlog.get_logger(__name__)

_SCOPE = InstrumentationScope("headrace", version("headrace"))
# It logs each batch that fails, with what the collector answered.
_SDK_LOGGER = "opentelemetry"


class OtlpTracing(Tracing):
    """Tracing that is on. Used from many threads at once."""

    is_on = True

    def __init__(self, settings: OtelSettings, service: str, instance: str) -> None:
        logging.getLogger(_SDK_LOGGER).setLevel(logging.CRITICAL)
        self._resource = Resource.create(
            {
                "service.name": settings.service_name or service,
                "service.namespace": "headrace",
                "service.version": version("headrace"),
                "service.instance.id": instance,
            }
        )
        self._sampler = _sampler(settings)
        self._queue_size = settings.queue_size
        self._lock = threading.Lock()
        self._num_queued = self._num_exported = self._num_queue_full = self._num_not_exported = 0
        self._is_failing = False
        self._processor = BatchSpanProcessor(
            _CountedExporter(OTLPSpanExporter(endpoint=settings.endpoint), self),
            max_queue_size=settings.queue_size,
            schedule_delay_millis=settings.delay_ms,
            max_export_batch_size=settings.batch_size,
        )

    def begin(self, parent: TraceContext | None) -> TraceContext:
        """Return the context of a new span; the sampler decides if its trace is exported."""
        trace_id = new_trace_id() if parent is None else parent.trace_id
        context = None if parent is None else _as_parent(parent)
        decision = self._sampler.should_sample(context, int(trace_id, 16), "")
        return TraceContext(trace_id, new_span_id(), decision.decision is Decision.RECORD_AND_SAMPLE)

    def within(self, parent: TraceContext | None) -> TraceContext | None:
        """Return the context of a new span inside ``parent``."""
        return parent and parent.child()

    def record(self, span: TraceSpan) -> None:
        """Queue a span, or drop it if the queue is full."""
        if not span.context.is_sampled:
            return
        with self._lock:
            # Without this bound the SDK would drop the oldest span, and count it nowhere.
            if self._num_queued >= self._queue_size:
                self._num_queue_full += 1
                return
            self._num_queued += 1
        self._processor.on_end(_readable(span, self._resource))

    def counts(self) -> SpanCounts:
        """Return what became of the spans."""
        with self._lock:
            return SpanCounts(self._num_exported, self._num_queue_full, self._num_not_exported)

    def stop(self, within_s: float = STOP_S) -> None:
        """Export what is queued, for ``within_s`` at most."""
        stopping = threading.Thread(target=self._processor.shutdown, name="stop-tracing", daemon=True)
        stopping.start()
        stopping.join(within_s)

    def note_taken(self, num_spans: int) -> None:
        """Note that the exporter took spans from the queue."""
        with self._lock:
            self._num_queued -= num_spans

    def note_result(self, num_spans: int, *, is_exported: bool) -> None:
        """Count a batch. The first failure after a success is logged."""
        with self._lock:
            was_failing, self._is_failing = self._is_failing, not is_exported
            if is_exported:
                self._num_exported += num_spans
            else:
                self._num_not_exported += num_spans
        if not is_exported and not was_failing:
            log.warning("spans_not_exported", num_spans=num_spans)
        elif is_exported and was_failing:
            log.info("spans_exported_again")


class _CountedExporter(SpanExporter):
    """OpenTelemetry's exporter, with a count of what it took, sent and could not send."""

    def __init__(self, exporter: SpanExporter, tracing: OtlpTracing) -> None:
        self._exporter = exporter
        self._tracing = tracing

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans."""
        self._tracing.note_taken(len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._tracing.note_result(len(spans), is_exported=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Send nothing more."""
        self._exporter.shutdown()


def _sampler(settings: OtelSettings) -> Sampler:
    samplers: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "parentbased_always_on": DEFAULT_ON,
        "parentbased_always_off": DEFAULT_OFF,
        "traceidratio": TraceIdRatioBased(settings.ratio),
        "parentbased_traceidratio": ParentBasedTraceIdRatio(settings.ratio),
    }
    return samplers[settings.sampler]


def _as_parent(parent: TraceContext) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(parent, is_remote=True)), Context())


def _span_context(context: TraceContext, *, is_remote: bool = False) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if context.is_sampled else trace.TraceFlags.DEFAULT)
    return trace.SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote, flags)


def _readable(span: TraceSpan, resource: Resource) -> ReadableSpan:
    """Return a span of the SDK. Made directly, because a tracer would give it the present time and a random id."""
    attributes = {str(name): value for name, value in span.attributes.items()}
    if span.error is not None:
        attributes[str(Attribute.ERROR_TYPE)] = span.error
    return ReadableSpan(
        name=span.name,
        context=_span_context(span.context),
        parent=None if span.parent_span_id is None else _span_context(span.context.child(span.parent_span_id)),
        resource=resource,
        attributes=attributes,
        links=[trace.Link(_span_context(link, is_remote=True)) for link in span.links],
        kind=trace.SpanKind[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error is not None else Status(StatusCode.UNSET),
        start_time=span.start_ns,
        end_time=max(span.start_ns, span.end_ns),
        instrumentation_scope=_SCOPE,
    )
