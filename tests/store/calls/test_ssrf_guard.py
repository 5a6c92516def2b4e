"""The guarded client against real sockets: allowed and refused addresses, and the time limit of a call."""

import gzip
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from headrace.store.calls.ssrf_guard import (
    MAX_RESPONSE_BYTES,
    AddressRefused,
    AnswerTooLong,
    CallFailed,
    CallTimedOut,
    GuardedClient,
    resolve,
)
from headrace.store.settings import Settings
from tests.workers.receiver import Answer, Receiver

OPEN = Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Names:
    """A resolver that answers from a table, one answer after another, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


def post(client: GuardedClient, url: str, timeout_s: float = 60.0) -> int:
    return client.post(url, headers={"x-test": "1"}, body=b"{}", timeout_s=timeout_s).status


def test_a_call_arrives_with_the_original_name(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"])
    assert post(GuardedClient(OPEN, resolve=names), receiver.url("/a?b=c", host="hooks.example.com")) == 204
    (call,) = receiver.calls
    assert call.path == "/a?b=c"
    assert call.headers["host"].startswith("hooks.example.com:")
    assert (call.headers["x-test"], call.body) == ("1", b"{}")
    assert names.asked == ["hooks.example.com"]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["192.0.0.192"],
        ["100.100.100.200"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["fe80::1%lo"],
        [],
    ],
)
def test_a_name_with_any_address_that_is_not_public_is_refused(receiver: Receiver, addresses: list[str]) -> None:
    client = GuardedClient(Settings(webhook_allow_http=True), resolve=Names(addresses))
    with pytest.raises(AddressRefused) as caught:
        post(client, receiver.url(host="rebind.example.com"))
    assert receiver.calls == []
    assert not any(address in str(caught.value) for address in addresses)


def test_a_name_is_resolved_once_for_a_call_and_again_for_the_next(receiver: Receiver) -> None:
    """DNS rebinding: the checked address is the connected one, and a later answer is checked as well."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    client = GuardedClient(OPEN, resolve=names)
    assert post(client, receiver.url(host="rebind.example.com")) == 204
    with pytest.raises(AddressRefused):
        post(client, receiver.url(host="rebind.example.com"))
    assert len(names.asked) == 2
    assert len(receiver.calls) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]", "127.1"])
def test_spellings_of_this_machine_reach_nothing(receiver: Receiver, host: str) -> None:
    with pytest.raises(AddressRefused):
        post(GuardedClient(Settings(webhook_allow_http=True)), receiver.url(host=host))
    assert receiver.calls == []


def test_the_first_address_that_answers_is_used(receiver: Receiver) -> None:
    client = GuardedClient(OPEN, resolve=Names(["127.0.0.2", "127.0.0.1"]))
    assert post(client, receiver.url(host="two.example.com")) == 204


def test_a_redirect_is_an_answer_and_nothing_more(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(301, {"location": receiver.url("/inside")})
    assert post(GuardedClient(OPEN), receiver.url("/hook")) == 301
    assert [call.path for call in receiver.calls] == ["/hook"]


def test_http_is_refused_unless_development_allows_it(receiver: Receiver) -> None:
    with pytest.raises(AddressRefused, match="https"):
        post(GuardedClient(Settings(webhook_allow_networks=("127.0.0.0/8",))), receiver.url())


def test_proxy_variables_are_not_obeyed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(GuardedClient(OPEN), receiver.url()) == 204


def test_a_receiver_that_says_nothing_is_left_at_the_deadline(receiver: Receiver) -> None:
    start = time.monotonic()
    with pytest.raises(CallTimedOut):
        post(GuardedClient(OPEN), receiver.url("/slow"), timeout_s=0.3)
    assert time.monotonic() - start < 8


def test_a_receiver_that_drips_is_left_at_the_deadline(receiver: Receiver) -> None:
    """Each byte comes in time; the answer never does."""
    receiver.answer = lambda _: Answer(drip=b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)
    start = time.monotonic()
    with pytest.raises(CallTimedOut):
        post(GuardedClient(OPEN), receiver.url(), timeout_s=0.5)
    assert time.monotonic() - start < 8


def test_an_endless_answer_is_read_to_a_limit(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(200, endless=True)
    assert post(GuardedClient(OPEN), receiver.url()) == 200


def test_nothing_is_waited_for_beyond_the_limit_of_a_body() -> None:
    """The first part of a longer body, up to the limit, is an answer even if the rest never arrives."""
    let_go = threading.Event()

    def begin(connection: socket.socket) -> None:
        head = OK + b"content-length: %d\r\n\r\n" % (2 * MAX_RESPONSE_BYTES)
        connection.sendall(head + bytes(MAX_RESPONSE_BYTES))
        let_go.wait(30)

    with answering(begin) as url:
        try:
            assert post(GuardedClient(OPEN), url) == 200
        finally:
            let_go.set()


def test_a_compressed_bomb_is_not_opened(receiver: Receiver) -> None:
    bomb = gzip.compress(bytes(32 << 20))
    assert len(bomb) < MAX_RESPONSE_BYTES
    receiver.answer = lambda _: Answer(200, {"content-encoding": "gzip"}, body=bomb)
    tracemalloc.start()
    try:
        assert post(GuardedClient(OPEN), receiver.url()) == 200
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("beginning", "again", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"x", CallTimedOut),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", CallTimedOut),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", CallTimedOut),
        (b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"x" * 8192 + b"\r\n", CallFailed),
    ],
    ids=["a body by drops", "informational answers without end", "chunks without end", "headers without end"],
)
def test_an_answer_that_never_ends_is_left(beginning: bytes, again: bytes, error: type[CallFailed]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def go_on() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(beginning)
                while True:
                    connection.sendall(again)
                    time.sleep(0.01)

        going_on = threading.Thread(target=go_on)
        going_on.start()
        start = time.monotonic()
        with pytest.raises(error):
            post(GuardedClient(OPEN), f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.4)
        assert time.monotonic() - start < 8
        going_on.join(5)


@contextmanager
def answering(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one call: run ``say`` when the request has arrived; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                request = b""
                while not request.endswith(b"{}"):  # closing with something unread would be a reset
                    request += connection.recv(4096)
                say(connection)

        answering = threading.Thread(target=answer)
        answering.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        answering.join(5)
        assert not answering.is_alive()


@pytest.mark.parametrize(
    ("beginning", "again", "status"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: " + b"x" * 50_000 + b"\r\n\r\n", None),
        (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 200),
        (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n", None),
    ],
    ids=["100s", "early hints", "chunks of one byte", "trailers"],
)
def test_a_flood_is_left_long_before_the_deadline(beginning: bytes, again: bytes, status: int | None) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(beginning)
        while True:
            connection.sendall(again * (65_536 // len(again) + 1))

    # A busy machine may read a flood for long, but never until this deadline.
    with answering(flood) as url:
        if status is None:
            with pytest.raises(CallFailed) as left:
                post(GuardedClient(OPEN), url, timeout_s=250)
            assert not isinstance(left.value, CallTimedOut)
        else:
            assert post(GuardedClient(OPEN), url, timeout_s=250) == status


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"<html>HTTP/0.9</html>", None),
        (b"SSH-2.0-OpenSSH_9.9\r\n", None),
        (b"HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n", 302),
        (b"HTTP/1.1 301 Moved Permanently\r\ncontent-length: 0\r\n\r\n", 301),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + b"x" * 1000, None),
        (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nxxxxx", None),
        (OK + b"content-length: 9999\r\n\r\nxxxxx", None),
        (OK + b"content-length: -1\r\n\r\n", None),
        (OK + b"content-length: 2\r\n\r\nxxxxx", 200),
        (OK + b"content-encoding: " + b"zstd, br, " * 999 + b"gzip\r\ncontent-length: 4\r\n\r\n\xff\xff\xff\xff", 200),
        (OK + b"\x00\xff: x\r\n\r\n", None),
    ],
)
def test_odd_answers_are_answers_or_failures(answer: bytes, status: int | None) -> None:
    with answering(lambda connection: connection.sendall(answer)) as url:
        if status is None:
            with pytest.raises(CallFailed, match="HTTP answer"):
                post(GuardedClient(OPEN), url)
        else:
            assert post(GuardedClient(OPEN), url) == status


@pytest.mark.parametrize("drip", [b"", b"\x16\x03\x03\x40\x00" + bytes(1000)], ids=["silence", "a record by drops"])
def test_a_handshake_that_never_ends_is_left_at_the_deadline(drip: bytes) -> None:
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def shake() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                for byte in drip:
                    connection.sendall(bytes([byte]))
                    if is_over.wait(0.05):
                        return
                is_over.wait(10)

        shaking = threading.Thread(target=shake)
        shaking.start()
        start = time.monotonic()
        with pytest.raises(CallTimedOut):
            post(GuardedClient(OPEN), f"https://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.4)
        assert time.monotonic() - start < 8
        is_over.set()
        shaking.join(5)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com@{here}/",
        "http://{here}#@hooks.example.com/",
        "http://hooks.example.com\\@{here}/",
        "http://127.0.0.1.:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.0.0.1%00.example.com:{port}/",
        "http://[::ffff:7f00:1]:{port}/",
        "http://[64:ff9b::7f00:1]:{port}/",
        "http://[2002:7f00:1::]:{port}/",
        "http://[::1%25lo]:{port}/",
        "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/",
        "http://127\u30020\u30020\u30021:{port}/",
        "http://localhost.:{port}/",
        "http://x.localhost:{port}/",
        "gopher://{here}/",
        "http://{here}:0/",
    ],
)
def test_a_url_in_disguise_reaches_nothing(receiver: Receiver, url: str) -> None:
    port = receiver.url().rsplit(":", 1)[1].split("/")[0]
    names = Names(["127.0.0.1"])
    with pytest.raises(CallFailed):
        post(
            GuardedClient(Settings(webhook_allow_http=True), resolve=names),
            url.format(here=f"127.0.0.1:{port}", port=port),
        )
    assert receiver.calls == []
    assert names.asked == [], "it was refused before anybody was asked"


def test_a_resolver_that_does_not_answer_is_left_at_the_deadline(receiver: Receiver) -> None:
    is_over = threading.Event()

    def resolve(host: str, port: int) -> Sequence[str]:
        is_over.wait(10)
        return ["127.0.0.1"]

    start = time.monotonic()
    with pytest.raises(CallTimedOut):
        post(GuardedClient(OPEN, resolve=resolve), receiver.url(host="slow.example.com"), timeout_s=0.3)
    assert time.monotonic() - start < 8
    is_over.set()
    assert receiver.calls == []


def test_failures_are_named_without_an_address(receiver: Receiver) -> None:
    port = int(receiver.url().rsplit(":", 1)[1].split("/")[0])
    receiver.close()
    with pytest.raises(CallFailed, match=r"^connection refused$"):
        post(GuardedClient(OPEN, resolve=Names(["127.0.0.1"])), f"http://gone.example.com:{port}/")
    with pytest.raises(CallFailed, match=r"^[a-z ]+ not found$"):
        post(GuardedClient(OPEN, resolve=_not_found), "http://nobody.example.com/")


def test_the_certificate_is_checked_against_the_name() -> None:
    # Made with openssl for this name, signed by itself, good until 2126; it guards nothing.
    certificate = str(Path(__file__).with_name("hooks.example.com.pem"))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    receiver = Receiver(server_side)
    try:
        here = Names(["127.0.0.1"])
        trusting = ssl.create_default_context(cafile=certificate)
        client = GuardedClient(OPEN, resolve=here, ssl_context=trusting)
        assert post(client, receiver.url(host="hooks.example.com")) == 204
        assert receiver.server_names == ["hooks.example.com"]
        with pytest.raises(CallFailed, match="certificate"):
            post(client, receiver.url(host="other.example.com"))
        with pytest.raises(CallFailed, match="certificate"):
            post(GuardedClient(OPEN, resolve=here), receiver.url(host="hooks.example.com"))
    finally:
        receiver.close()


def test_the_resolver_of_this_machine_is_asked() -> None:
    assert "127.0.0.1" in resolve("localhost", 80)


def _not_found(host: str, port: int) -> Sequence[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_each_method_sends_what_it_is_given_and_keeps_what_it_may(receiver: Receiver) -> None:
    client = GuardedClient(OPEN)
    receiver.answer = lambda _: Answer(404, {"X-Odd": "Yes"}, b"body")
    url, named = receiver.url("/a"), {"x-test": "1"}
    got = client.get(url, headers=named, timeout_s=60, most_bytes=4)
    assert (got.status, got.headers["x-odd"], got.body) == (404, "Yes", b"body")
    gone = client.delete(url, headers=named, timeout_s=60)
    sent = client.post(url, headers=named, body=b"{}", timeout_s=60)
    assert [(one.status, one.body) for one in (gone, sent)] == [(404, b"")] * 2
    assert [(call.headers["x-test"], call.body) for call in receiver.calls] == [("1", b""), ("1", b""), ("1", b"{}")]
    with pytest.raises(AnswerTooLong, match="3 bytes"):
        client.get(url, headers=named, timeout_s=60, most_bytes=3)
