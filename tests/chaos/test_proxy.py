"""The proxy applies its mode to a connection, and nothing else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.proxy import FaultProxy, Mode, ProxyThread


@pytest.fixture
def echo(server_folder: Path) -> Iterator[str]:
    """A server on a Unix socket that sends back what it gets."""
    path = str(server_folder / "echo.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            link, _ = listener.accept()
            threading.Thread(target=_echo, args=(link,), daemon=True).start()


def _echo(link: socket.socket) -> None:
    with suppress(OSError), link:
        while data := link.recv(4096):
            link.sendall(data)
            if data == b"reset me":
                # Closed with bytes unread, which on a Unix socket is a reset.
                link.recv(1, socket.MSG_PEEK)
                return


@pytest.fixture
def proxies() -> Iterator[ProxyThread]:
    thread = ProxyThread()
    yield thread
    thread.stop()


@pytest.fixture
def proxy(proxies: ProxyThread, echo: str) -> FaultProxy:
    return proxies.add("test", echo)


def connect(proxy: FaultProxy, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout_s)


def say(link: socket.socket, text: bytes) -> bytes:
    link.sendall(text)
    return link.recv(4096)


def is_answered(proxy: FaultProxy) -> bool:
    try:
        with connect(proxy) as link:
            return say(link, b"hello") == b"hello"
    except ConnectionError:
        return False


def test_it_passes_bytes_both_ways(proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        assert say(link, b"hello") == b"hello"
        assert say(link, b"again") == b"again"


def test_half_open_accepts_and_swallows_and_ends_what_it_swallowed(proxies: ProxyThread, proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        assert say(old, b"before") == b"before"
        proxies.set_mode(proxy, Mode.HALF_OPEN)
        with connect(proxy, 0.3) as new, pytest.raises(TimeoutError):
            say(new, b"anybody there?")
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            say(old, b"lost")
        proxies.set_mode(proxy, Mode.PASS)
        old.settimeout(10)
        with suppress(ConnectionResetError):
            assert old.recv(10) == b""
    with connect(proxy) as link:
        assert say(link, b"back") == b"back"


def test_cut_ends_everybody_and_lets_nobody_in(proxies: ProxyThread, proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        assert say(link, b"before") == b"before"
        proxies.set_mode(proxy, Mode.CUT)
        with pytest.raises(ConnectionResetError):
            say(link, b"after")
    assert not is_answered(proxy)
    proxies.set_mode(proxy, Mode.PASS)
    with connect(proxy) as link:
        assert say(link, b"back") == b"back"


def test_reset_is_an_error_and_not_an_end(proxies: ProxyThread, proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        assert say(link, b"before") == b"before"
        proxies.reset(proxy)
        with pytest.raises(ConnectionResetError):
            link.recv(10)


def test_a_reset_by_the_server_reaches_the_client(proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        assert say(link, b"before") == b"before"
        assert say(link, b"reset me") == b"reset me"  # answered: the next bytes are not read together with these
        link.sendall(b"unread")
        with pytest.raises(ConnectionResetError):
            link.recv(10)


def test_a_server_that_is_away_is_a_reset(proxies: ProxyThread) -> None:
    proxy = proxies.add("nobody", "/nonexistent/sock")
    assert not is_answered(proxy)
