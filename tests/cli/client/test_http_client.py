"""The verbs' client: events, errors in one sentence, and streams that go on after a broken connection."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cli.client.http_client import Client, Event, parse_events
from store.errors import HeadraceError, NotFound, RateLimited, RequestError, Unauthenticated, Unavailable

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """An HTTP server that passes each request to ``answer``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            answer(self)

        def log_message(self, *args: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def reply(status: int, body: Any, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("content-length", 0)))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def test_events_are_read_as_the_specification_says() -> None:
    lines = [
        ": ping",
        "",
        "id: 1-1",
        "event: job.delta",
        'data: {"text":',
        'data: "a: b"}',
        "",
        "id:1-2",
        "data:{}",
        "",
        "id: 9",
    ]
    assert list(parse_events(lines)) == [
        Event("1-1", "job.delta", {"text": "a: b"}),
        Event("1-2", "", {}),
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestError),
        (401, Unauthenticated),
        (404, NotFound),
        (422, RequestError),
        (429, RateLimited),
        (503, Unavailable),
    ],
)
def test_a_refusal_carries_the_servers_sentence_and_code(status: int, kind: type[HeadraceError]) -> None:
    body = {"error": {"message": "the tank is empty", "type": "x", "param": None, "code": "tank_empty"}}
    with server(reply(status, body, Retry_After="7")) as url, Client(url, "k") as client, pytest.raises(kind) as raised:
        client.submit({"model": "m"})
    assert (raised.value.message, raised.value.code) == ("the tank is empty", "tank_empty")
    if isinstance(raised.value, RateLimited):
        assert raised.value.retry_after_s == 7


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[]", b'{"error": "no"}'])
def test_an_answer_that_is_not_headraces_is_said_plainly(body: bytes) -> None:
    refused = pytest.raises(Unavailable, match="the server answered 502")
    with server(reply(502, body)) as url, Client(url, "k") as client, refused:
        client.models()
    refused = pytest.raises(Unavailable, match="not as Headrace does")
    with server(reply(200, body)) as url, Client(url, "k") as client, refused:
        client.models()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::bad", "not a url"])
def test_an_unreachable_or_malformed_address_is_one_sentence(url: str) -> None:
    with pytest.raises(HeadraceError) as raised, Client(url, "k") as client:
        client.models()
    assert "\n" not in raised.value.message
    assert url in raised.value.message


def sse(*events: tuple[str, str, Any]) -> bytes:
    return b"".join(f"id: {i}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode() for i, name, data in events)


def test_a_broken_stream_goes_on_after_the_last_event_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.client.http_client.RECONNECT_S", 0)
    asked: list[str | None] = []
    first = sse(("1-1", "job.delta", {"text": "Wa"})) + b"event: job.note\ndata: {}\n\n"  # without an id of its own
    second = sse(
        ("1-2", "job.delta", {"text": "ter"}), ("1-3", "job.succeeded", {"id": "job_1", "status": "succeeded"})
    )

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.headers.get("last-event-id"))
        match len(asked):
            case 1:  # cut in the middle: fewer bytes than announced
                request.send_response(200)
                request.send_header("content-length", "1000")
                request.end_headers()
                request.wfile.write(first)
                request.close_connection = True
            case 2:
                reply(503, {"error": {"message": "draining", "code": "draining"}})(request)
            case 3:  # ended cleanly, but without a terminal event
                reply(200, b": ping\n\n")(request)
            case _:
                reply(200, second)(request)

    with server(answer) as url, Client(url, "k") as client:
        events = list(client.follow("job_1"))
    assert "".join(event.data.get("text", "") for event in events) == "Water"
    assert events[-1].is_terminal
    assert asked == [None, "1-1", "1-1", "1-1"]


def test_a_stream_of_an_unknown_job_is_refused_at_once() -> None:
    body = {"error": {"message": "no job job_1", "code": "not_found"}}
    with server(reply(404, body)) as url, Client(url, "k") as client, pytest.raises(NotFound, match="no job job_1"):
        next(client.follow("job_1"))


def test_a_job_id_cannot_reach_another_route() -> None:
    paths: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        paths.append(request.path)
        reply(404, {"error": {"message": "no"}})(request)

    with server(answer) as url, Client(url, "k") as client, pytest.raises(NotFound):
        client.job("../models?x=1#y")
    assert paths == ["/v1/jobs/..%2Fmodels%3Fx%3D1%23y"]
