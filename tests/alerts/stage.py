"""A cluster with callers, on which one fault after another makes one alert after another fire."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
from sqlalchemy import text

from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from tests.chaos.cluster import Cluster, Member
from tests.chaos.faults import Faults
from tests.chaos.load import Order, marked
from tests.chaos.nemesis import Strike

Json = dict[str, Any]
_EVERY_S = 0.12
_LATE_S = 33


@dataclass
class Caller:
    """Submits jobs all the time, some of each class. ``body`` changes the bodies of all of them."""

    cluster: Cluster
    body: Json = field(default_factory=dict)
    is_paused: bool = False
    _is_over: bool = False

    def run(self) -> None:
        """Submit until ``stop``; failures are what the alerts are about."""
        with httpx2.Client(timeout=60, trust_env=False) as http:
            n = 0
            while not self._is_over:
                n += 1
                if not self.is_paused:
                    with suppress(httpx2.TransportError):
                        self.submit(http, n, ("interactive", "standard", "batch")[n % 3], **self.body)
                time.sleep(_EVERY_S)

    def submit(self, http: httpx2.Client, n: int, service_class: str, **more: Any) -> httpx2.Response:
        """Submit one job."""
        body = {
            "model": "fake",
            "input": {"prompt": f"number {n}: tell me of rivers"},
            "sampling": {"max_tokens": 60, "temperature": 0, "ignore_eos": True},
            "service_class": service_class,
            "user": f"user-{n % 60}",
            **more,
        }
        return self.ask(http, "/v1/jobs", body)

    def ask(self, http: httpx2.Client, path: str, body: Json | None = None) -> httpx2.Response:
        """Send a POST with the key of the first tenant."""
        headers = {"Authorization": f"Bearer {self.cluster.tenants[0].key}"}
        return http.post(self.cluster.api_urls[0] + path, json=body or {}, headers=headers)

    def stop(self) -> None:
        """Submit no more."""
        self._is_over = True


class Stage:
    """What the faults work on. ``has_fired`` is set once the alert of the running fault fires."""

    def __init__(self, cluster: Cluster, caller: Caller, receiver_url: str) -> None:
        self.cluster = cluster
        self.caller = caller
        self.receiver_url = receiver_url
        self.has_fired = False
        # Prometheus must have seen the new worker before its first refused write, or it sees no increase.
        self.faults = Faults(cluster, 1, self.break_engine, late_finish=20)
        self._num_marked = 0

    def until_fired(self) -> Iterator[None]:
        """Yield until the alert fires, or until the fault has lasted too long."""
        while not self.has_fired:
            yield

    def strike(self, fault: str, target: str = "", for_s: float = 3.0) -> Iterator[None]:
        """Do a fault of the chaos tests, with its repair."""
        yield from self.faults.carry(Strike(0.0, fault, target, for_s))

    def again(self, act: Callable[[], object], every_s: float) -> Iterator[None]:
        """Do something every few seconds until the alert fires."""
        due_at = 0.0
        while not self.has_fired:
            if time.monotonic() >= due_at:
                act()
                due_at = time.monotonic() + every_s
            yield

    def break_engine(self, mark: str) -> Order:
        """Submit a job that breaks the engine's step."""
        self._num_marked += 1
        order = marked(mark, self._num_marked, seed=1)
        self.post("/v1/jobs", order.body(self.receiver_url))
        return order

    def post(self, path: str, body: Json | None = None) -> None:
        """Send a request; an API that is away is part of some faults."""
        with suppress(httpx2.TransportError), httpx2.Client(timeout=60, trust_env=False) as http:
            self.caller.ask(http, path, body)

    def down(self, *kinds: str) -> Iterator[None]:
        """Kill all processes of these kinds, keep them down until the alert fires, and start them again."""
        members = [one for kind in kinds for one in self.cluster.of_kind(kind)]
        for member in members:
            member.keep = False
            self.cluster.signal(member, signal.SIGKILL)
        yield from self.until_fired()
        for member in members:
            member.keep = True

    def restarted(self, kind: str, **extra: str) -> Iterator[None]:
        """Start the processes of a kind anew, with other settings; return when they serve."""
        members = self.cluster.of_kind(kind)
        before = [one.pid for one in members]
        for member in members:
            member.extra = {f"HEADRACE_{name.upper()}": value for name, value in extra.items()}
            self.cluster.signal(member, signal.SIGKILL)
        while any(one.pid == pid or not self.cluster.is_ready(one) for one, pid in zip(members, before, strict=True)):
            yield

    def register(self, model: str, dtype: str = "float32") -> int:
        """Register a fake model, or a further version of it; return its number."""
        with closing(self._database()) as db:
            return register(db, model, "fake", dtype, actor="alerts").version

    def register_folder(self, model: str, folder: str) -> None:
        """Register a model whose weights are in this folder, which nobody looks at."""
        about = {"runner": "tabular", "digest": "0" * 64, "dtype": "float32", "context_window": 512, "files": {}}
        with closing(self._database()) as db:
            register_version(db, model=model, source=folder, actor="alerts", **about)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement past the API; return its rows."""
        with closing(self._database()) as db, db.begin() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def _database(self) -> Database:
        return Database(self.cluster.database_url, pool_size=1, application_name="alerts")

    def removed(self, member: Member) -> Iterator[None]:
        """Ask a process to end, wait until it has ended, and forget it."""
        member.keep = False
        self.cluster.signal(member, signal.SIGTERM)
        while member.is_alive:
            yield
        self.cluster.members.remove(member)

    def stutter(self, kind: str, stopped_s: float, going_s: float) -> Iterator[None]:
        """Stop and continue the processes of a kind in turns."""
        members = [one for one in self.cluster.of_kind(kind) if one.is_alive]
        while not self.has_fired:
            yield from self._hold(members, signal.SIGSTOP, stopped_s)
            yield from self._hold(members, signal.SIGCONT, going_s)

    def locked(self, table: str, held_s: float, free_s: float) -> Iterator[None]:
        """Keep a table from writers and let it go in turns, as an index that is built beside them does."""
        with closing(self._database()) as db:
            while not self.has_fired:
                with db.begin() as connection:
                    connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
                    yield from during(held_s)
                yield from during(free_s)

    def _hold(self, members: list[Member], number: signal.Signals, seconds: float) -> Iterator[None]:
        for member in members:
            self.cluster.signal(member, number)
        yield from during(seconds)


def during(seconds: float) -> Iterator[None]:
    """Yield for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield


class _Handler(BaseHTTPRequestHandler):
    """``/gone`` answers 410; ``/late`` asks to wait before it accepts; every other path accepts."""

    seen: set[str] = set()  # noqa: RUF012 - of the one receiver of a run

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        event_id = self.headers.get("webhook-id", "")
        status = 204
        if self.path.startswith("/gone"):
            status = 410
        elif self.path.startswith("/late") and event_id not in self.seen:
            self.seen.add(event_id)
            status = 503
        self.send_response(status)
        if status == 503:
            self.send_header("Retry-After", str(_LATE_S))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def start_receiver() -> ThreadingHTTPServer:
    """Start a receiver of webhooks on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
