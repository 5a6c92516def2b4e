"""Health and metrics of a process, on one port: ``/healthz``, ``/readyz`` and ``/metrics``.

A process that answers is alive. It is ready if all checks pass, and they run at each request: does the engine make
steps, may jobs be taken, does Postgres answer. The server has its own threads and the check its own connection, so a
hung engine or an exhausted connection pool cannot delay or falsify the answer.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson

from headrace.store.db.database import Database, check_schema
from headrace.store.errors import Unavailable
from headrace.store.metrics.registry import CONTENT_TYPE

_IDLE_S = 10

OK = "ok"
Check = Callable[[], str]
"""Returns ``ok``, or a sentence that describes the problem."""


class LoopHeartbeat:
    """Checks that a loop still runs: it fails after ``longest_s`` without a beat."""

    def __init__(self, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s = longest_s
        self._clock = clock
        self._beat_at = clock()

    def beat(self) -> None:
        """Note a turn of the loop."""
        self._beat_at = self._clock()

    def check(self) -> str:
        """Return ``ok``, or the problem."""
        age_s = self.age_s
        return OK if age_s <= self._longest_s else f"the loop has not turned for {age_s:.0f} s"

    @property
    def age_s(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._beat_at


def postgres_check(db: Database) -> Check:
    """Return a check that Postgres answers and has the schema of this version."""

    def check() -> str:
        try:
            check_schema(db)
        except Unavailable as error:
            return error.message
        return OK

    return check


def readiness(checks: Mapping[str, Check]) -> tuple[int, dict[str, str]]:
    """Return the HTTP status and the result of each check."""
    results = {name: check() for name, check in checks.items()}
    is_ready = all(result == OK for result in results.values())
    return (200 if is_ready else 503), {"status": "ready" if is_ready else "not ready", **results}


class _Ipv6Server(ThreadingHTTPServer):
    """A server on an IPv6 address."""

    address_family = socket.AF_INET6


class HealthServer:
    """Serves the three pages on a port of the address ``host``; serves nothing if the port is 0.

    ``metrics`` returns the page for Prometheus.
    """

    def __init__(self, host: str, port: int, metrics: Callable[[], bytes], checks: Mapping[str, Check]) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._checks = checks
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen, and answer on its own threads."""
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
                status, results = readiness(self._checks)
                return status, "application/json", orjson.dumps(results)
            case "/metrics":
                return 200, CONTENT_TYPE, self._metrics()
            case _:
                return 404, "application/json", b'{"status":"not found"}'


def _handler(page: Callable[[str], tuple[int, str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET. It logs nothing, and its headers name no software version."""

        # A client that sends nothing must not keep a thread.
        timeout = _IDLE_S

        def version_string(self) -> str:
            """Return the value of the header Server."""
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
            """Log nothing: probes come every few seconds."""

    return Handler
