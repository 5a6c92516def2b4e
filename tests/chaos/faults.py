"""Implements each fault on a cluster, and its repair.

A fault is a generator: it injects, yields while it lasts, and repairs. It never blocks, so that other faults can run
meanwhile.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis
from sqlalchemy import make_url

from tests.chaos.cluster import ROOT, Cluster, Member
from tests.chaos.load import Order
from tests.chaos.nemesis import OURS, Strike
from tests.chaos.proxy import FaultProxy, Mode
from tests.chaos.tools import CALLER

# The first commit that reads payloads stored as their text (docs/decisions/0534): an older worker cannot run such jobs.
OLD_RELEASE = "188905f1"
DAY_S = 86_400
_LONGEST_S = 60.0
_STALE_TRIES = 5
_WRITE_S = 15.0

_HELD = "SELECT id FROM jobs WHERE state = 'running' AND owner LIKE %(owner)s"
_CALLING = "SELECT id FROM jobs WHERE state = 'running' AND task = 'call_tool'"
_OPEN = "SELECT id FROM jobs WHERE id = ANY(%(ids)s) AND completed_at IS NULL"


class Faults:
    """Faults for one cluster. ``inject(mark)`` submits an order that breaks its engine.

    ``late_finish``: how many outcomes a new worker writes up to the one that comes too late.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        inject: Callable[[str], Order],
        *,
        lease_s: float = 3.0,
        late_finish: int = 3,
    ) -> None:
        self._late_finish = late_finish
        self._cluster = cluster
        self._rng = random.Random(f"targets {seed}")
        self._inject = inject
        self._lease_s = lease_s
        self._clock_library = find_clock_library()
        self._old_root = unpack_old_release(cluster.folder / "old")

    def carry(self, strike: Strike) -> Iterator[None]:
        """Inject a fault. A fault that is impossible on this machine is recorded in the journal."""
        name = strike.fault
        verb, _, kind = name.partition("_")
        if verb in {"kill", "pause", "term"} and kind in OURS:
            return {"kill": self._kill, "pause": self._pause, "term": self._term}[verb](kind, strike)
        if name in _MARKED:
            return self._break_engine(_MARKED[name], strike)
        if name in _PROXIED:
            server, mode = _PROXIED[name]
            return self._bend(server, mode, strike)
        return getattr(self, f"_{name}")(strike)

    # -- our processes ------------------------------------------------------------------------------------------------

    def _pick(self, kind: str, *, among_several: bool = False) -> Member | None:
        """Return a living process. ``among_several``: one whose jobs another one can end."""
        living = [one for one in self._cluster.of_kind(kind) if one.keep and one.is_alive]
        living = [one for one in living if not (among_several and one.name == CALLER)]
        return self._rng.choice(living) if living else None

    def _kill(self, kind: str, strike: Strike) -> Iterator[None]:
        if (member := self._pick(kind)) is not None:
            self._cluster.signal(member, signal.SIGKILL)
        yield from hold(strike.for_s)

    def _kill_call(self, strike: Strike) -> Iterator[None]:
        """Kill the worker of calls while it makes one."""
        deadline = time.monotonic() + _LONGEST_S
        while not (yield from self.found(_CALLING)) and time.monotonic() < deadline:
            yield
        self._cluster.signal(self._cluster.find(CALLER), signal.SIGKILL)
        yield from hold(strike.for_s)

    def _pause(self, kind: str, strike: Strike) -> Iterator[None]:
        """Stop it for longer than its lease, then continue it."""
        member = self._pick(kind)
        if member is None or not self._cluster.signal(member, signal.SIGSTOP):
            return
        yield from hold(max(strike.for_s, 1.7 * self._lease_s))
        self._cluster.signal(member, signal.SIGCONT)

    def _pause_at_finish(self, strike: Strike) -> Iterator[None]:
        """Let a worker write an outcome after another attempt has ended the job. It lasts as long as that takes.

        Other faults may interfere, so it is repeated until such a write was refused: a run without one proves nothing.
        """
        del strike
        for _ in range(_STALE_TRIES):
            member = self._pick("worker", among_several=True)
            if member is not None and (yield from self._write_late(member)):
                return
            yield from hold(1.0)
        self._cluster.journal.write("not_run", fault="pause_at_finish", why="no worker came to write too late")

    def _write_late(self, member: Member) -> Generator[None, None, bool]:
        """Stop a worker before it writes an outcome, until its jobs ended elsewhere; True if the write was refused."""
        member.extra = {"HEADRACE_FAILPOINTS": f"finish.before=stop@{self._late_finish}"}
        yield from self._restart(member)
        member.extra = {}
        yield from self._until(lambda: member.is_stopped or not member.is_alive)
        if not member.is_stopped:
            # Without the failpoint, or it would stop again with nothing to continue it.
            yield from self._restart(member)
            return False
        self._cluster.journal.write("stopped", member=member.kind, name=member.name)
        held = yield from self.found(_HELD, owner=f"%:{member.pid}:%")
        deadline = time.monotonic() + _LONGEST_S
        while (yield from self.found(_OPEN, ids=held)) and time.monotonic() < deadline:
            yield
        before = self._num_refused(member)
        self._cluster.signal(member, signal.SIGCONT)
        return (yield from self._until(lambda: self._num_refused(member) > before, _WRITE_S))

    def _until(self, condition: Callable[[], bool], timeout_s: float = _LONGEST_S) -> Generator[None, None, bool]:
        """Yield until the condition is true; return whether it became so in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            yield
        return True

    def found(self, sql: str, **values: object) -> Generator[None, None, list[str]]:
        """Return the ids that a statement finds, as soon as Postgres answers."""
        while True:
            with suppress(psycopg.Error), self._connect() as connection:
                return [row[0] for row in connection.execute(sql, values)]
            yield

    def _num_refused(self, member: Member) -> int:
        return self._cluster.log_of(member.name).read_text(errors="replace").count('"stale_finish_refused"')

    def _term(self, kind: str, strike: Strike) -> Iterator[None]:
        if (member := self._pick(kind)) is not None:
            self._cluster.signal(member, signal.SIGTERM)
        yield from hold(strike.for_s)

    def _term_twice(self, strike: Strike) -> Iterator[None]:
        if (member := self._pick(strike.target)) is not None:
            self._cluster.signal(member, signal.SIGTERM)
            yield from hold(0.3)
            self._cluster.signal(member, signal.SIGTERM)
        yield from hold(strike.for_s)

    def _break_engine(self, mark: str, strike: Strike) -> Iterator[None]:
        self._inject(mark)
        yield from hold(strike.for_s)

    def _clock_off(self, strike: Strike) -> Iterator[None]:
        """Run a worker with a wall clock a day ahead or behind; its monotonic clock is right."""
        member = self._pick("worker")
        if member is None or self._clock_library is None:
            self._cluster.journal.write("not_run", fault="clock_off", why="libfaketime is not installed")
            return
        offset = DAY_S if strike.target == "ahead" else -DAY_S
        member.extra = {
            "LD_PRELOAD": str(self._clock_library),
            "FAKETIME": f"{offset:+d}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        yield from self._restart(member)
        self._cluster.journal.write("clock", name=member.name, offset_s=offset)
        yield from hold(strike.for_s)
        member.extra = {}
        yield from self._restart(member)

    def _rolling_restart(self, strike: Strike) -> Iterator[None]:
        del strike
        for member in [one for one in self._cluster.members if one.keep]:
            yield from self._restart(member)

    def _restart(self, member: Member) -> Iterator[None]:
        """Stop it and return when its successor serves, or after a minute."""
        before = member.pid
        deadline = time.monotonic() + _LONGEST_S
        self._cluster.signal(member, signal.SIGTERM)
        while time.monotonic() < deadline:
            if member.pid != before and (member.is_stopped or self._cluster.is_ready(member)):
                return
            yield

    def _old_release(self, strike: Strike) -> Iterator[None]:
        """Run a worker of the previous release beside the new ones, on the new schema."""
        if self._old_root is None:
            self._cluster.journal.write("not_run", fault="old_release", why=f"no {OLD_RELEASE} in the history")
            return
        name = f"old-{time.monotonic_ns() // 1_000_000}"
        member = self._cluster.add("worker", name, root=self._old_root, is_old=True)
        member.keep = False
        deadline = time.monotonic() + _LONGEST_S
        while member.is_alive and not self._cluster.is_ready(member) and time.monotonic() < deadline:
            yield
        yield from hold(strike.for_s)
        self._cluster.signal(member, signal.SIGTERM)
        while member.is_alive and time.monotonic() < deadline:
            yield

    # -- Redis --------------------------------------------------------------------------------------------------------

    def _redis_restart(self, strike: Strike) -> Iterator[None]:
        self._cluster.servers_kept["redis"] = False
        self._cluster.valkey.stop()
        yield from hold(strike.for_s)
        self._cluster.valkey.start()
        self._cluster.servers_kept["redis"] = True

    def _redis_kill(self, strike: Strike) -> Iterator[None]:
        self._kill_server("redis")
        yield from hold(strike.for_s)

    def _redis_wipe(self, strike: Strike) -> Iterator[None]:
        self._ask_redis("FLUSHALL")
        self._cluster.journal.write("wipe")
        yield from hold(strike.for_s)

    def _redis_full(self, strike: Strike) -> Iterator[None]:
        self._ask_redis("CONFIG", "SET", "maxmemory", "1")
        yield from hold(strike.for_s)
        self._ask_redis("CONFIG", "SET", "maxmemory", "0")

    def _redis_readonly(self, strike: Strike) -> Iterator[None]:
        self._ask_redis("REPLICAOF", "127.0.0.1", "1")
        yield from hold(strike.for_s)
        self._ask_redis("REPLICAOF", "NO", "ONE")

    def _ask_redis(self, *command: str) -> None:
        with suppress(redis.RedisError), redis.Redis.from_url(self._cluster.redis_url, socket_timeout=10) as client:
            client.execute_command(*command)

    # -- Postgres -----------------------------------------------------------------------------------------------------

    def _postgres_restart(self, strike: Strike) -> Iterator[None]:
        self._cluster.servers_kept["postgres"] = False
        self._cluster.postgres.stop()
        yield from hold(strike.for_s / 3)
        self._cluster.postgres.start()
        self._cluster.servers_kept["postgres"] = True

    def _postgres_kill(self, strike: Strike) -> Iterator[None]:
        self._kill_server("postgres")
        yield from hold(strike.for_s)

    def _postgres_stall(self, strike: Strike) -> Iterator[None]:
        """Stop the server with all its processes for longer than the leases."""
        pids = self._cluster.server_pids("postgres")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield from hold(max(strike.for_s, 1.4 * self._lease_s))
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _postgres_reset(self, strike: Strike) -> Iterator[None]:
        for proxy in self._proxies("postgres", strike.target):
            self._cluster.proxies.reset(proxy)
        yield from hold(strike.for_s)

    def _connections_out(self, strike: Strike) -> Iterator[None]:
        """Take every connection that the server has, also those that are in use."""
        hogs: list[psycopg.Connection] = []
        until = time.monotonic() + strike.for_s
        while time.monotonic() < until:
            self._hog(hogs)
            yield
        for hog in hogs:
            hog.close()

    def _hog(self, hogs: list[psycopg.Connection], at_once: int = 40) -> None:
        most = len(hogs) + at_once
        with suppress(psycopg.Error):
            while len(hogs) < most:
                hogs.append(self._connect())
        if hogs:
            with suppress(psycopg.Error):
                hogs[0].execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'headrace%'"
                )

    def _connect(self) -> psycopg.Connection:
        url = make_url(self._cluster.database_url)
        return psycopg.connect(
            host=str(url.query["host"]), user=url.username, dbname=url.database, autocommit=True, connect_timeout=2
        )

    def _disk_full(self, strike: Strike) -> Iterator[None]:
        if not self._cluster.limit_disk(is_full=True):
            why = "neither a tmpfs of its own nor prlimit is allowed here"
            self._cluster.journal.write("not_run", fault="disk_full", why=why)
            return
        yield from hold(strike.for_s)
        self._cluster.limit_disk(is_full=False)

    # -- common to both -----------------------------------------------------------------------------------------------

    def _kill_server(self, name: str) -> None:
        pids = self._cluster.server_pids(name)
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            self._cluster.journal.write("signal", member=name, name=name, pid=pids[0], signal="SIGKILL")

    def _bend(self, server: str, mode: Mode, strike: Strike) -> Iterator[None]:
        proxies = self._proxies(server, strike.target)
        for proxy in proxies:
            self._cluster.proxies.set_mode(proxy, mode)
        yield from hold(strike.for_s)
        for proxy in proxies:
            self._cluster.proxies.set_mode(proxy, Mode.PASS)

    def _proxies(self, server: str, side: str) -> list[FaultProxy]:
        return [one.proxies[server] for one in self._cluster.members if side in ("all", one.kind)]


_MARKED = {
    "poison": "exit",
    "engine_hung": "hang",
    "engine_raises": "raise",
    "out_of_memory": "oom",
    "nan_row": "nan",
}
_PROXIED = {
    "redis_half_open": ("redis", Mode.HALF_OPEN),
    "redis_slow": ("redis", Mode.SLOW),
    "redis_cut": ("redis", Mode.CUT),
    "postgres_slow": ("postgres", Mode.DELAY),
    "postgres_half_open": ("postgres", Mode.HALF_OPEN),
    "postgres_cut": ("postgres", Mode.CUT),
}


def hold(seconds: float) -> Iterator[None]:
    """Yield until the time is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield


def find_clock_library() -> Path | None:
    """Return libfaketime's shared object, if the package is installed and carries one."""
    spec = find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.rglob("libfaketime.so.1"))
    return found[0] if found else None


def unpack_old_release(folder: Path, commit: str = OLD_RELEASE) -> Path | None:
    """Write the code of the previous release, or of a commit, into ``folder``; None if the git history lacks it."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode != 0:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=False)
    return folder if done.returncode == 0 else None
