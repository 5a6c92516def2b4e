"""An OpenTelemetry collector for tests: what processes export by OTLP over HTTP, parsed from its protobuf."""

from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from headrace.store.tracing.tracing import Tracing, open_tracing
from tests.workers.receiver import Answer, Receiver


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as the collector got it. Ids are hexadecimal; ``links`` are span ids; ``error`` is the status's text."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]
    error: str | None


class Collector(Receiver):
    """Takes spans on a local port."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = lambda _: Answer(200)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process exports to it, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url(""), "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def tracing(self, service: str, **more: str) -> Tracing:
        """Return a part of this process that exports to it."""
        return open_tracing(service, "test", {**self.environment, **more})

    def spans(self) -> list[ReceivedSpan]:
        """Return the spans that came so far, in the order of their start."""
        found = []
        for call in list(self.calls):
            assert call.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(call.body).resource_spans:
                service = _values(resource.resource.attributes)["service.name"]
                found += [_received(service, span) for scope in resource.scope_spans for span in scope.spans]
        return sorted(found, key=lambda span: (span.start_ns, -span.end_ns))


def _received(service: str, span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        tuple(link.span_id.hex() for link in span.links),
        span.status.message if span.status.code == 2 else None,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None
