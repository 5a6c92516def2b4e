"""What the clients repeat, and how they read answers that no Headrace gives: against a server that plays them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from headrace.client import (
    ApiUnavailable,
    Client,
    ClientError,
    ConnectionLost,
    InvalidApiKey,
    InvalidBaseUrl,
    RequestRefused,
    ResourceMissing,
    TooManyRequests,
)
from tests.headrace.client.conftest import Connect

Answer = Callable[[BaseHTTPRequestHandler], None]

JOB: Any = {"id": "job_1", "status": "succeeded"}


class Played:
    """A server that gives one answer after the other, the last one again and again."""

    def __init__(self, url: str, requests: list[BaseHTTPRequestHandler]) -> None:
        self.url, self.requests = url, requests

    def header(self, name: str) -> list[str | None]:
        """A header of each request."""
        return [request.headers.get(name) for request in self.requests]


@contextmanager
def playing(*answers: Answer) -> Iterator[Played]:
    requests: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            requests.append(self)
            answers[min(len(requests), len(answers)) - 1](self)

        do_POST = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Played(f"http://127.0.0.1:{server.server_address[1]}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(status: int, body: Any, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def error(status: int, code: str = "no_capacity", **headers: str) -> Answer:
    body = {"error": {"message": "the tank is empty", "type": "x", "param": "model", "code": code}}
    return reply(status, body, x_request_id="req_1", **headers)


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.close()


def sse(*events: tuple[str, str, Any]) -> bytes:
    return b"".join(f"id: {i}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode() for i, name, data in events)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.retries.FIRST_S", 0.001)


@pytest.mark.parametrize("failure", [error(429), error(503, Retry_After="0"), reply(502, b"<html>"), hang_up])
def test_a_failure_in_passing_is_repeated_with_the_same_key(connect: Connect, failure: Answer) -> None:
    with playing(failure, failure, reply(202, JOB)) as played:
        assert connect(played.url, "k").submit(model="m", input={})["id"] == "job_1"
    (key,) = set(played.header("idempotency-key"))
    assert key
    assert len(played.requests) == 3


@pytest.mark.parametrize(("failure", "kind"), [(error(503), ApiUnavailable), (hang_up, ConnectionLost)])
def test_repeats_end(connect: Connect, failure: Answer, kind: type[ClientError]) -> None:
    with playing(failure) as played, pytest.raises(kind):
        connect(played.url, "k", max_retries=2).job("job_1")
    assert len(played.requests) == 3


@pytest.mark.parametrize(
    ("failure", "num_requests"),
    [(error(400), 1), (error(500), 1), (error(429, "quota_exceeded", x_should_retry="false"), 1), (hang_up, 1)],
)
def test_what_a_repeat_could_double_or_not_change_is_sent_once(
    connect: Connect, failure: Answer, num_requests: int
) -> None:
    with playing(failure, reply(200, {})) as played, pytest.raises(ClientError):
        connect(played.url, "k").request("POST", "/v1/webhook_endpoints", json={})
    assert len(played.requests) == num_requests


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused),
        (401, InvalidApiKey),
        (403, InvalidApiKey),
        (404, ResourceMissing),
        (410, ResourceMissing),
        (422, RequestRefused),
        (429, TooManyRequests),
        (500, ApiUnavailable),
    ],
)
def test_an_error_carries_what_the_server_says(connect: Connect, status: int, kind: type[ClientError]) -> None:
    with playing(error(status, "tank_empty", Retry_After="7")) as played, pytest.raises(kind) as raised:
        connect(played.url, "k", max_retries=0).submit(model="m", input={})
    found = raised.value
    assert (found.message, found.code, found.param) == ("the tank is empty", "tank_empty", "model")
    assert (found.request_id, found.status, found.retry_after_s) == ("req_1", status, 7)


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[]", b'{"error": "no"}'])
def test_an_answer_that_is_not_headraces_is_said_plainly(connect: Connect, body: bytes) -> None:
    with playing(reply(500, body)) as played, pytest.raises(ApiUnavailable, match="500"):
        connect(played.url, "k").job("job_1")
    with playing(reply(200, body)) as played:
        client = connect(played.url, "k")
        with pytest.raises(ApiUnavailable, match=played.url):
            client.job("job_1")
        with pytest.raises(ApiUnavailable, match=played.url):
            list(client.stream("job_1"))


@pytest.mark.parametrize("url", ["http://[::bad", "not a url", "ftp://x", ""])
def test_a_malformed_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidBaseUrl, match="http"):
        Client(url, "k")


def test_a_server_that_does_not_wait_is_not_hammered(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.job_calls.POLL_S", 0.2)
    running = reply(200, JOB | {"status": "running"})
    with playing(running, running, reply(200, JOB)) as played:
        began = time.monotonic()
        assert connect(played.url, "k").wait("job_1")["status"] == "succeeded"
    assert time.monotonic() - began >= 0.4
    assert len(played.requests) == 3


def test_the_server_is_asked_to_wait_no_longer_than_the_caller(connect: Connect) -> None:
    with playing(reply(200, JOB)) as played:
        connect(played.url, "k").wait("job_1", timeout_s=5)
    path, _, waited = played.requests[0].path.partition("?wait=")
    assert path == "/v1/jobs/job_1"
    assert 0 < float(waited) <= 5


def test_a_job_id_cannot_reach_another_route(connect: Connect) -> None:
    with playing(error(404)) as played, pytest.raises(ResourceMissing):
        connect(played.url, "k").job("../models?x=1#y")
    assert [request.path for request in played.requests] == ["/v1/jobs/..%2Fmodels%3Fx%3D1%23y"]


def test_a_broken_stream_goes_on_after_the_last_event(connect: Connect) -> None:
    first = sse(("1-1", "job.delta", {"text": "Wa"})) + b"event: job.note\ndata: {}\n\n: ping\n\nid: 1-2\nda"
    second = sse(("1-2", "job.delta", {"text": "ter"}), ("1-3", "job.succeeded", JOB), ("1-4", "job.delta", {}))

    def cut(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-type", "text/event-stream; charset=utf-8")
        request.send_header("content-length", "1000")
        request.end_headers()
        request.wfile.write(first)
        request.close_connection = True

    ended = reply(200, b": ping\n\n", content_type="text/event-stream")
    last = reply(200, second, content_type="text/event-stream")
    with playing(cut, error(503), hang_up, ended, last) as played:
        events = list(connect(played.url, "k").stream("job_1"))
    assert "".join(event.text for event in events) == "Water"
    assert [event.name for event in events] == ["job.delta", "job.note", "job.delta", "job.succeeded"]
    assert played.header("last-event-id") == [None, "1-1", "1-1", "1-1", "1-1"]


def test_a_stream_that_never_brings_an_event_is_given_up(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.retries.OUTAGE_S", 0.3)
    with playing(reply(200, b"", content_type="text/event-stream")) as played, pytest.raises(ConnectionLost):
        list(connect(played.url, "k", max_retries=0).stream("job_1"))
    assert len(played.requests) > 1


def test_waiters_go_on_through_an_outage_of_the_server(connect: Connect) -> None:
    away = [hang_up, error(503)] * 4
    stream = reply(200, sse(("1-1", "job.succeeded", JOB)), content_type="text/event-stream")
    running, ended = reply(200, JOB | {"status": "running"}), reply(200, JOB | {"output": {"text": "Water"}})
    with playing(*away, ended) as played:
        assert connect(played.url, "k", max_retries=1).result("job_1", timeout_s=60) == {"text": "Water"}
    with playing(running, *away, ended, *away, stream) as played:
        client = connect(played.url, "k", max_retries=1)
        assert client.wait("job_1")["status"] == "succeeded"
        assert [event.name for event in client.stream("job_1")] == ["job.succeeded"]


def test_a_waiter_ends_at_its_limit_and_at_an_error_that_stays(connect: Connect) -> None:
    with playing(hang_up) as played:
        client = connect(played.url, "k", max_retries=50)
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            client.wait("job_1", timeout_s=0.5)
        assert 0.5 <= time.monotonic() - began < 30
    with playing(hang_up, error(404)) as played, pytest.raises(ResourceMissing):
        connect(played.url, "k").wait("job_1", timeout_s=300)
    with playing(hang_up) as played, pytest.raises(ConnectionLost):
        connect(played.url, "k", max_retries=2).wait("job_1")
    assert len(played.requests) == 3, "an address that never answered"


def test_a_stream_with_nothing_left_is_empty(connect: Connect) -> None:
    def nothing(request: BaseHTTPRequestHandler) -> None:
        request.send_response(204)
        request.end_headers()

    with playing(nothing) as played:
        assert list(connect(played.url, "k").stream("job_1", after="1-3")) == []
    assert played.header("last-event-id") == ["1-3"]
