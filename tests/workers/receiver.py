"""A webhook receiver: a real HTTP server with scripted answers that records its calls."""

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.processes import WAIT_S


@dataclass(frozen=True)
class Call:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Answer:
    """The answer. ``drip``: one byte each 50 ms; ``endless``: a body without an end."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    drip: bytes = b""
    endless: bool = False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    receiver: "Receiver"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_DELETE(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        receiver.note(call)
        if call.path.startswith("/slow"):
            receiver.released.wait(WAIT_S)
        try:
            self._reply(receiver.answer(call), receiver.released)
        except OSError:
            self.close_connection = True

    def _reply(self, answer: Answer, released: threading.Event) -> None:
        for byte in answer.drip:
            self.wfile.write(bytes([byte]))
            if released.wait(0.05):
                return
        if not answer.drip:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(10**15 if answer.endless else len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
        while answer.endless and not released.is_set():
            self.wfile.write(b"x" * 4096)

    def log_message(self, *_: object) -> None:
        pass


class Receiver:
    """Serves ``answer(call)`` on a local port. ``released`` holds back the answers of paths that begin with /slow."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[Call] = []
        self.server_names: list[str | None] = []
        self.answer: Callable[[Call], Answer] = lambda _: Answer()
        self.released = threading.Event()
        self._scheme = "https" if tls else "http"
        self._changed = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.receiver = self
        if tls:
            tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        """Where it listens."""
        return f"{self._scheme}://{host}:{self._server.server_port}{path}"

    def wait_calls(self, count: int, path: str = "", timeout_s: float = WAIT_S) -> list[Call]:
        """Wait for that many calls with a path that starts with ``path``."""

        def matching() -> list[Call]:
            return [call for call in self.calls if call.path.startswith(path)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(matching()) >= count, timeout_s), f"only {len(matching())} calls"
            return matching()

    def close(self) -> None:
        """Stop serving."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def note(self, call: Call) -> None:
        """Keep a call; the server's side."""
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
