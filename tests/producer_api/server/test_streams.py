"""Server-sent events, the spans of a request, the lag of the loop, and uvicorn's configuration, without a server."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.routing import Route
from starlette.types import Message

from headrace.producer_api.server import loop_lag, sse
from headrace.producer_api.server.http_server import BoundedHttp, server_config
from headrace.producer_api.server.loop_lag import LoopLag
from headrace.producer_api.server.request_spans import RequestTrace, record_accept
from headrace.producer_api.server.sse import EventStream, Heartbeat, StreamAborted
from headrace.store.errors import Unavailable
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import Attribute, SpanKind, TraceContext, TraceSpan, Tracing


def test_events_have_the_forms_that_clients_read() -> None:
    assert sse.event("job.delta", "3", {"a": 1}) == b'id: 3\nevent: job.delta\ndata: {"a":1}\n\n'
    assert sse.data_only({"a": 1}) == b'data: {"a":1}\n\n'
    assert sse.named({"type": "ping", "a": 1}) == b'event: ping\ndata: {"type":"ping","a":1}\n\n'
    assert (sse.PING, sse.LINE_PING) == (b": ping\n\n", b": ping\n")


def test_a_ping_is_due_when_nothing_was_sent_for_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("headrace.producer_api.server.sse.time", SimpleNamespace(monotonic=lambda: now))
    heartbeat, due = Heartbeat(10.0), []
    for at in (109.9, 110.0, 110.1, 119.9, 120.0):
        now = at
        due.append(heartbeat.is_due())
    now = 125.0
    heartbeat.beat()
    now = 134.9
    due.append(heartbeat.is_due())
    assert due == [False, True, False, False, True, False]


async def stream(chunks: AsyncGenerator[bytes, None], leaves: bool = False) -> tuple[list[Message], list[str]]:
    """Send an event stream; return its messages, and the order in which it began and ended."""
    sent: list[Message] = []
    order: list[str] = []

    @contextmanager
    def while_open() -> Iterator[None]:
        order.append("open")
        yield
        order.append("closed")

    async def on_gone() -> None:
        order.append("gone")

    async def receive() -> Message:
        if leaves:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    response = EventStream(chunks, while_open=while_open, headers={"X-Job-Id": "j"}, on_gone=on_gone)
    await response({"type": "http"}, receive, send)
    return sent, order


async def test_a_stream_that_ends_is_closed_and_not_gone() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    (start, *body), order = await stream(chunks())
    assert start == {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            (b"x-job-id", b"j"),
            (b"content-type", b"text/event-stream; charset=utf-8"),
        ],
    }
    assert [(one["body"], one["more_body"]) for one in body] == [(b"a", True), (b"b", True), (b"", False)]
    assert order == ["open", "closed"]


async def test_a_stream_whose_client_is_gone_ends_its_source_and_says_so() -> None:
    is_cleaned = False

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal is_cleaned
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            is_cleaned = True

    sent, order = await stream(chunks(), leaves=True)
    assert (len(sent), order, is_cleaned) == (1, ["open", "closed", "gone"], True)


async def test_a_stream_that_fails_has_no_clean_end() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"a"
        raise Unavailable("away")

    with pytest.raises(StreamAborted):
        await stream(chunks())


async def test_the_lag_is_how_late_a_timer_ran() -> None:
    """The loop's clock is the test's: timers run at once, three seconds late and then early."""
    lags: list[float] = []
    lag = LoopLag(lags.append)
    loop = asyncio.get_running_loop()
    timers: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: 100.0)
        patch.setattr(loop, "call_at", lambda due, call, *arguments: timers.append((due, call, arguments)))
        lag.start()
        ((due, call, arguments),) = timers
        patch.setattr(loop, "time", lambda: 103.0)
        call(*arguments)
        patch.setattr(loop, "time", lambda: 103.0)
        call(loop, 104.0)
    assert (due, loop_lag.EVERY_S, lags) == (100.25, 0.25, [2.75, 0.0])
    assert [at for at, _, _ in timers] == [100.25, 103.25, 103.25]


CALLER = TraceContext("a" * 32, "b" * 16, True)
OWN = TraceContext("a" * 32, "c" * 16, True)


class Recording(Tracing):
    """Tracing that keeps its spans."""

    is_on = True

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []

    def begin(self, parent: TraceContext | None) -> TraceContext:
        return OWN

    def record(self, span: TraceSpan) -> None:
        self.spans.append(span)


def _asked(method: str = "POST", path: str = "/v1/jobs", header: str = CALLER.header) -> dict[str, Any]:
    route = Route("/v1/{what}", lambda _: None)
    headers = [(b"traceparent", header.encode())]
    return {"type": "http", "method": method, "path": path, "headers": headers, "route": route}


def test_a_write_has_a_span_below_that_of_its_caller() -> None:
    tracing = Recording()
    trace = RequestTrace(tracing, _asked())
    assert (trace.context, trace.trace_id) == (OWN, {"trace_id": "a" * 32})
    trace.record("req_1", 499)
    (span,) = tracing.spans
    assert (span.name, span.context, span.parent_span_id, span.kind) == (
        "POST /v1/{what}",
        OWN,
        "b" * 16,
        SpanKind.SERVER,
    )
    assert span.attributes == {
        Attribute.HTTP_METHOD: "POST",
        Attribute.REQUEST_ID: "req_1",
        Attribute.HTTP_STATUS: 499,
        Attribute.HTTP_ROUTE: "/v1/{what}",
    }
    assert (span.error, 0 < span.start_ns <= span.end_ns) == (None, True)


def test_a_request_without_an_answer_a_route_or_a_caller_has_a_span_without_them() -> None:
    tracing = Recording()
    scope = _asked("DELETE", header="nonsense")
    del scope["route"]
    RequestTrace(tracing, scope).record("req_1", 0)
    (span,) = tracing.spans
    assert (span.name, span.parent_span_id, span.error) == ("DELETE", None, None)
    assert span.attributes == {Attribute.HTTP_METHOD: "DELETE", Attribute.REQUEST_ID: "req_1"}


def test_reads_have_no_span_but_the_trace_of_their_caller() -> None:
    tracing = Recording()
    for scope in (_asked("GET"), _asked(path="/healthz")):
        trace = RequestTrace(tracing, scope)
        assert (trace.context, trace.trace_id) == (CALLER, {"trace_id": "a" * 32})
        trace.record("req_1", 200)
    assert (RequestTrace(tracing, _asked("GET", header="")).trace_id, tracing.spans) == ({}, [])


def _job(traceparent: str | None) -> Any:
    """A job, with the fields of its view."""
    told = {"id": "job_1", "tenant_id": "tenant", "queue": "tiny@1", "model": "tiny"}
    return SimpleNamespace(**told, service_class=ServiceClass.BATCH, traceparent=traceparent)


def test_the_acceptance_of_a_job_is_a_span_of_its_own_trace() -> None:
    tracing, job = Recording(), _job(OWN.header)
    record_accept(tracing, job, 7, parent=CALLER)
    record_accept(tracing, job, 7, batch_id="batch_1", link=CALLER)
    record_accept(tracing, None, 7)
    record_accept(tracing, _job(None), 7)
    record_accept(Tracing(), job, 7)
    of_request, of_line = tracing.spans
    attributes = {
        Attribute.JOB_ID: "job_1",
        Attribute.TENANT_ID: "tenant",
        Attribute.QUEUE: "tiny@1",
        Attribute.SERVICE_CLASS: "batch",
        Attribute.REQUEST_MODEL: "tiny",
    }
    assert (of_request.name, of_request.context, of_request.kind) == ("accept", OWN, SpanKind.PRODUCER)
    assert (of_request.parent_span_id, of_request.links, of_request.start_ns) == ("b" * 16, (), 7)
    assert of_request.attributes == attributes
    assert (of_line.parent_span_id, of_line.links) == (None, (CALLER,))
    assert of_line.attributes == attributes | {Attribute.BATCH_ID: "batch_1"}


def test_uvicorn_has_our_bounds_and_trusts_only_named_proxies() -> None:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x", drain_s=7.5)
    config = server_config("app", settings, log_level="warning")
    assert (config.http, config.ws, config.access_log, config.server_header) == (BoundedHttp, "none", False, False)
    assert (config.proxy_headers, config.forwarded_allow_ips, config.lifespan) == (False, [], "on")
    assert (config.timeout_keep_alive, config.timeout_graceful_shutdown, config.log_level) == (75, 8, "warning")
    behind = server_config("app", settings.model_copy(update={"trusted_proxies": ("10.0.0.0/8",)}))
    assert (behind.proxy_headers, behind.forwarded_allow_ips) == (True, ["10.0.0.0/8"])
    assert (BoundedHttp.head_bytes, BoundedHttp.head_s) == (65_536, 20.0)
