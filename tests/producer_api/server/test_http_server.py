"""Hostile connections: endless or slow headers and bodies, upgrades; and the headers of answers."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest

from headrace.producer_api.http import middleware
from headrace.producer_api.server.http_server import BoundedHttp
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.producer_api.calling import error_of, submit
from tests.producer_api.serving import ApiServer, serving

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def hasty(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """The server, with little patience for connections that are made from now on."""
    monkeypatch.setattr(BoundedHttp, "head_s", 0.3)
    monkeypatch.setattr(middleware, "BODY_S", 0.3)
    return server


def _connect(server: ApiServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=60)


def _begin(server: ApiServer, data: bytes) -> socket.socket:
    """Connect and send before the server looks: a test that is slow must not be taken for a slow client."""
    stands_still, may_go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        stands_still.set()
        may_go_on.wait(60)

    server.loop.call_soon_threadsafe(stand_still)
    assert stands_still.wait(60)
    try:
        connection = _connect(server)
        connection.sendall(data)
    finally:
        may_go_on.set()
    return connection


def _rest(connection: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    found = b""
    try:
        while chunk := connection.recv(65_536):
            found += chunk
    except ConnectionError:
        pass
    return found


def _refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def _endless(pieces: Iterator[bytes], server: ApiServer) -> tuple[bytes, int]:
    """Send until the server closes; return its answer and the number of bytes sent."""
    num_bytes = 0
    with _connect(server) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                num_bytes += len(piece)
        except OSError:
            pass
        return _rest(connection), num_bytes


def _pieces(kind: str) -> Iterator[bytes]:
    yield {"many headers": HEAD, "one header": HEAD + b"X: ", "one URL": b"GET /"}[kind]
    for number in range(4096):
        yield b"X-%d: %s\r\n" % (number, b"y" * 4000) if kind == "many headers" else b"y" * 4096


def test_a_head_without_end_is_cut_off_and_a_large_one_passes(server: ApiServer, subtests: pytest.Subtests) -> None:
    for kind in ("many headers", "one header", "one URL"):
        with subtests.test(kind):
            answer, num_bytes = _endless(_pieces(kind), server)
            assert num_bytes < 8 << 20
            # The answer is lost if the client still wrote while the server hung up.
            assert not answer or _refusal(answer) == (431, "headers_too_large")
    with _connect(server) as connection:
        connection.sendall(HEAD + b"X: " + b"y" * BoundedHttp.head_bytes + b"\r\n\r\n")
        assert _refusal(_rest(connection)) == (431, "headers_too_large")
    assert httpx2.get(f"{server.url}/healthz", headers={"X": "y" * 60_000}, timeout=60).status_code == 200


def test_who_does_not_finish_a_head_is_hung_up_on(hasty: ApiServer, subtests: pytest.Subtests) -> None:
    for begun in (b"", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost:"):
        with subtests.test(repr(begun)), _begin(hasty, begun) as connection:
            answer = _rest(connection)
            assert _refusal(answer) == (408, "request_timeout") if begun.strip() else answer == b""
    with subtests.test("the second request of a connection"), _begin(hasty, HEAD + b"\r\n") as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        time.sleep(0.4)  # longer than a head may take: a connection that is kept alive is not one that is slow
        connection.sendall(HEAD)
        assert _refusal(_rest(connection)) == (408, "request_timeout")


def test_half_a_head_does_not_end_the_response_before_it(hasty: ApiServer, api: httpx2.Client, key: str) -> None:
    job_id = submit(api)
    poll = f"GET /v1/jobs/{job_id}?wait=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    for rest, after in ((HEAD, b"HTTP/1.1 408"), (b"\x16\x03\x01 no HTTP\r\n\r\n", None)):
        with _begin(hasty, poll.encode() + rest) as connection:
            first, separator, second = _rest(connection).partition(b"}HTTP/1.1 ")
            if after is None:  # data that is not HTTP closes the connection, and does not get into another answer
                assert b"400" not in first
                assert not separator
                continue
            assert first.startswith(b"HTTP/1.1 200")
            assert b'"status":"queued"' in first
            assert (separator[1:] + second).startswith(after)


def test_a_request_says_once_whose_it_is_and_no_path_is_another(server: ApiServer, key: str) -> None:
    client = httpx2.Client(base_url=server.url, headers=[("Authorization", f"Bearer {key}")], timeout=60)
    with client:
        twice = client.get("/v1/jobs", headers=[("Authorization", f"Bearer {key}"), ("Authorization", "Bearer hr_x_y")])
        assert (twice.status_code, error_of(twice)["param"]) == (400, "Authorization")
        slash = client.post("/v1/jobs/", json={"model": "tiny"}, headers={"Host": "elsewhere.example"})
        # Served in its place: a redirect would send the body and the key to an address that the caller's Host names.
        assert (slash.status_code, error_of(slash)["param"]) == (400, "input")
        assert "location" not in slash.headers


def test_an_address_is_the_connection_s_unless_a_trusted_proxy_says_another(
    settings: Settings, model: ModelVersion, db: Database, tenant: str, key: str
) -> None:
    def noted(verb: str, trusted: tuple[str, ...], forwarded: str) -> str | None:
        with serving(settings.model_copy(update={"trusted_proxies": trusted})) as server:
            headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": forwarded}
            httpx2.post(f"{server.url}/v1/queues/tiny@1/{verb}", headers=headers, timeout=60).raise_for_status()
        return list_entries(db, tenant, limit=1)[0].address

    assert noted("pause", (), "203.0.113.7") == "127.0.0.1"
    assert noted("resume", ("127.0.0.0/8",), "198.51.100.1, 203.0.113.7") == "203.0.113.7"
    assert noted("pause", ("127.0.0.1",), "<script>") is None


def test_a_body_that_does_not_come_is_given_up(hasty: ApiServer, key: str, subtests: pytest.Subtests) -> None:
    for path in ("/v1/jobs", "/v1/files"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 100\r\n"
        begun = head.encode() + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        with subtests.test(path), _begin(hasty, begun) as connection:
            assert _refusal(_rest(connection)) == (408, "request_timeout")


def test_what_is_no_http_is_told_so_and_a_web_socket_is_not_to_be_had(server: ApiServer) -> None:
    with _connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert _refusal(_rest(connection)) == (400, "invalid_value")
    upgrade = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    )
    with _connect(server) as connection:
        connection.sendall(HEAD + upgrade + b"\r\n")
        assert _rest(connection).startswith(b"HTTP/1.1 200")


def test_every_answer_is_guarded_and_no_other_origin_let_in(api: httpx2.Client) -> None:
    for response in (api.get("/healthz"), api.get("/v1/jobs"), api.get("/v1/nothing"), api.post("/v1/jobs", json={})):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "server" not in response.headers
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for response in (api.options("/v1/jobs", headers=asked), api.get("/v1/jobs", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_metrics_are_for_this_machine_unless_they_are_opened(settings: Settings) -> None:
    for changes, local, proxied in (
        ({}, 200, 404),
        ({"trusted_proxies": ("127.0.0.1",)}, 200, 404),
        ({"open_pages": ("metrics",)}, 200, 200),
    ):
        served = serving(settings.model_copy(update=changes))
        with served as server, httpx2.Client(base_url=server.url, timeout=60) as client:
            assert client.get("/metrics").status_code == local
            headers = {"X-Forwarded-For": "203.0.113.7"}
            assert client.get("/metrics", headers=headers).status_code == proxied


def test_metrics_are_rendered_once_a_second_for_all(api: httpx2.Client) -> None:
    started = time.monotonic()
    pages = {api.get("/metrics").content for _ in range(30)}  # each request changes the figures of requests
    assert len(pages) <= 2 + time.monotonic() - started


def test_pages_are_closed_on_demand(settings: Settings) -> None:
    closed = settings.model_copy(update={"open_pages": ()})
    with serving(closed) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        for path in ("/docs", "/openapi.json", "/version"):
            response = client.get(path)
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
            assert "/docs" not in error_of(response)["message"].replace("GET /docs", "")
        assert client.get("/docs/start.js").status_code == 404
        told = client.get("/", headers={"Accept": "text/html"})
        assert (told.status_code, "docs" in told.json()) == (200, False)
        assert {client.get("/healthz").status_code, client.get("/readyz").status_code} == {200}
