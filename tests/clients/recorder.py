"""A proxy that records every refusal (4xx) that a client meets, and the list of those that were reviewed.

    program ──▶ recorder ──▶ API        each 4xx: client, method, path, code, param, message

``refusals.toml`` says for each expected refusal why it is right. Any other one is an error of the run: a client sends
something by itself that Headrace should take.
"""

import http.client
import json
import re
import select
import socket
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REVIEWED = Path(__file__).parent / "refusals.toml"

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive"})
_PIECE = 65_536


@dataclass(frozen=True)
class Refusal:
    """An answer with a status from 400 to 499."""

    method: str
    path: str
    status: int
    code: str
    param: str
    message: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.status} {self.code} {self.param or '-'}: {self.message}"


@dataclass(frozen=True)
class Reviewed:
    """An entry of the list. ``clients`` is empty if it holds for all; ``message`` is a regular expression."""

    code: str
    why: str
    clients: tuple[str, ...] = ()
    param: str | None = None
    message: str = ""

    def covers(self, client: str, refusal: Refusal) -> bool:
        """Return True if the refusal is this one."""
        return (
            (not self.clients or client in self.clients)
            and self.code == refusal.code
            and self.param in (None, refusal.param)
            and re.search(self.message, refusal.message) is not None
        )


def read_reviewed(path: Path = REVIEWED) -> tuple[Reviewed, ...]:
    """Read the list. Raises TypeError for an unknown or missing field, ValueError for an entry without its reason."""
    entries = tuple(
        Reviewed(**entry | {"clients": tuple(entry.get("clients", ()))})
        for entry in tomllib.loads(path.read_text())["refusal"]
    )
    for entry in entries:
        if not entry.why.strip():
            raise ValueError(f"the refusal {entry.code} {entry.param or ''} has no reason")
    return entries


def unreviewed(client: str, refusals: Sequence[Refusal], reviewed: Sequence[Reviewed]) -> list[Refusal]:
    """Return the refusals that no entry covers, each once."""
    return [each for each in dict.fromkeys(refusals) if not any(entry.covers(client, each) for entry in reviewed)]


@dataclass
class Recorder:
    """A running proxy, and what it has recorded since the last ``take``."""

    url: str
    num_exchanges: int = 0
    num_failures: int = 0
    """Answers with a status of 500 or more."""
    _refusals: list[Refusal] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, path: str, status: int, body: bytes) -> None:
        """Record an answer; ``body`` is that of a refusal."""
        with self._lock:
            self.num_exchanges += 1
            self.num_failures += status >= 500
            if 400 <= status < 500:
                self._refusals.append(_refusal(method, path, status, body))

    def take(self) -> list[Refusal]:
        """Return the refusals since the last call."""
        with self._lock:
            taken, self._refusals = self._refusals, []
        return taken


def _refusal(method: str, path: str, status: int, body: bytes) -> Refusal:
    try:
        error: Any = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        error = {}
    error = error if isinstance(error, Mapping) else {}
    code = error.get("code") or error.get("type") or ""
    return Refusal(method, path, status, str(code), str(error.get("param") or ""), str(error.get("message", ""))[:300])


class _RecordingServer(ThreadingHTTPServer):
    def __init__(self, api_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        target = urlsplit(api_url)
        self.host, self.port = target.hostname or "", target.port
        self.recorder = Recorder(f"http://127.0.0.1:{self.server_address[1]}")


class _Handler(BaseHTTPRequestHandler):
    """Forwards a request to the server's target, and closes one side when the other has left."""

    server: "_RecordingServer"
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        self.close_connection = True
        body = self._body()
        upstream = http.client.HTTPConnection(self.server.host, self.server.port)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    upstream.putheader(name, value)
            upstream.putheader("content-length", str(len(body)))
            upstream.endheaders(body)
            if self._is_answer_coming(upstream.sock):
                self._pass_on(upstream.getresponse())
        except (OSError, http.client.HTTPException):
            pass  # one side has left or was cut off: closing the other says so
        finally:
            upstream.close()

    def do_GET(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def do_DELETE(self) -> None:
        self._forward()

    def do_PUT(self) -> None:
        self._forward()

    def do_PATCH(self) -> None:
        self._forward()

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _is_answer_coming(self, upstream: socket.socket) -> bool:
        """Wait for the answer; False if the client leaves before."""
        while True:
            readable, _, _ = select.select([upstream, self.connection], [], [])
            if upstream in readable:
                return True
            if not self.connection.recv(1, socket.MSG_PEEK):
                return False

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        is_error = answer.status >= 400
        kept = answer.read() if is_error else b""
        self.server.recorder.note(self.command, self.path.partition("?")[0], answer.status, kept)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("connection", "close")
        has_body = answer.status not in (204, 304)
        if has_body:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while has_body and (piece := kept or answer.read1(_PIECE)):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            kept = b""
        if has_body:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Log nothing: the runner prints a table."""


@contextmanager
def recording(api_url: str) -> Iterator[Recorder]:
    """Yield a recorder in front of ``api_url``. A client that leaves is gone for the server too."""
    with _RecordingServer(api_url) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.recorder
        finally:
            server.shutdown()
