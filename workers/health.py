"""The worker's own health and its metrics, on one port: ``/healthz``, ``/readyz`` and ``/metrics``.

Whoever answers lives; ready is who can work, and that is asked anew at each request: does the engine step, may jobs be
taken, does Postgres answer. The server's threads and the probe's connection are its own, so that neither a hung engine
nor a pool in use can make the answer hang, or make it good.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from store.db.database import Database, check_schema
from store.errors import Unavailable

_IDLE_S = 10

OK = "ok"
Check = Callable[[], str]
"""Returns ``ok``, or a sentence about what is wrong."""


class Pulse:
    """Whether a loop still turns: it beats, and the check fails when it has not for ``longest_s``."""

    def __init__(self, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s = longest_s
        self._clock = clock
        self._beat_at = clock()

    def beat(self) -> None:
        """Note that it turned."""
        self._beat_at = self._clock()

    def check(self) -> str:
        """Return what health says of it."""
        age_s = self._clock() - self._beat_at
        return OK if age_s <= self._longest_s else f"the loop has not turned for {age_s:.0f} s"


def postgres_check(db: Database) -> Check:
    """Return the check that Postgres answers and has the schema of this version."""

    def check() -> str:
        try:
            check_schema(db)
        except Unavailable as error:
            return error.message
        return OK

    return check


def readiness(checks: Mapping[str, Check]) -> tuple[int, dict[str, str]]:
    """Return the status and what each check said."""
    said = {name: check() for name, check in checks.items()}
    is_ready = all(word == OK for word in said.values())
    return (200 if is_ready else 503), {"status": "ready" if is_ready else "not ready", **said}


class _Ipv6Server(ThreadingHTTPServer):
    """The same on an IPv6 address."""

    address_family = socket.AF_INET6


class HealthServer:
    """Serves the three pages on a port of the address ``host``; on none if the port is 0."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, checks: Mapping[str, Check]) -> None:
        self._host = host
        self._port = port
        self._registry = registry
        self._checks = checks
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen, and answer from threads of its own."""
        if self._port:
            kind = _Ipv6Server if ":" in self._host else ThreadingHTTPServer
            self._server = kind((self._host, self._port), _handler(self._page))
            self._server.daemon_threads = True
            threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _page(self, path: str) -> tuple[int, str, bytes]:
        match path.partition("?")[0]:
            case "/healthz":
                return 200, "application/json", b'{"status":"ok"}'
            case "/readyz":
                status, said = readiness(self._checks)
                return status, "application/json", orjson.dumps(said)
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case _:
                return 404, "application/json", b'{"status":"not found"}'


def _handler(page: Callable[[str], tuple[int, str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET; says nothing in the log, and nothing of what it is made of."""

        # Who sends nothing does not keep a thread.
        timeout = _IDLE_S

        def version_string(self) -> str:
            """Return what the header Server says."""
            return "headrace"

        def do_GET(self) -> None:
            """Answer one request."""
            status, content_type, body = page(self.path)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Probes come every few seconds."""

    return Handler
