"""A collector in this process: takes spans by OTLP over HTTP and keeps them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class DrawnSpan:
    """A span as it is drawn. Ids are hexadecimal; ``links`` are span ids."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    links: tuple[str, ...]
    is_error: bool


@dataclass
class SpanStore:
    """What has come so far."""

    url: str = ""
    spans: list[DrawnSpan] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process exports to it, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}


@contextmanager
def collecting() -> Iterator[SpanStore]:
    """Run a collector on a free port."""
    store = SpanStore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            store.spans += _read(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


def _read(body: bytes) -> list[DrawnSpan]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        found += [
            DrawnSpan(
                named["service.name"],
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                tuple(link.span_id.hex() for link in span.links),
                span.status.code == span.status.STATUS_CODE_ERROR,
            )
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    return found
