"""A host with scripted workers and a scripted store: the clock, and the reports as a test reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from headrace.features.hosts.host_loop import HostLoop
from headrace.features.hosts.waiting_work import WaitingWork
from headrace.store.hosts.host_reports import HostPlace, HostReport, PlaceState
from headrace.store.hosts.hosted_versions import HostedVersion
from headrace.store.scheduling.scale_decisions import StoredDecision
from headrace.store.settings import Settings

AT = datetime(2026, 11, 29, tzinfo=UTC)
HOME = Settings(database_url="postgresql://nobody@localhost/none", drain_s=7.0, autoscale_drain_s=90.0)


class World:
    """The clock, the store and the workers of one host. ``turns``: called before each turn of the host."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turns: list[Callable[[], None]] = []
        self.host: HostLoop | None = None
        self.versions: list[HostedVersion] = []
        self.work = WaitingWork()
        self.others: list[HostReport] = []
        self.taken: set[str] = set()
        self.decisions: dict[str, StoredDecision] = {}
        self.workers: list[FakeWorker] = []
        self.reports: list[HostReport] = []
        self.is_held = True
        self.removed: list[str] = []

    @contextmanager
    def lead(self, _db: object, _key: int) -> Iterator[Any]:
        yield self if self.is_held else None

    def check(self) -> None:
        """Go on to the next turn, or stop the host."""
        self.now += 1.0
        if self.turns:
            self.turns.pop(0)()
        else:
            assert self.host is not None
            self.host.stop()

    def write_report(self, _db: object, report: HostReport, wanted: list[HostPlace]) -> HostReport:
        granted = tuple(place for place in wanted if place.queue not in self.taken)
        self.reports.append(report.model_copy(update={"places": (*report.places, *granted)}))
        return self.reports[-1]

    def new_worker(self, settings: Settings, host: str, queue: str, **options: Any) -> "FakeWorker":
        self.workers.append(FakeWorker(self, settings, host, queue, options))
        return self.workers[-1]

    def run(self, host: HostLoop, *turns: Callable[[], None]) -> None:
        self.host, self.turns = host, [*turns]
        host.run()

    def told(self) -> list[tuple[str, str, str]]:
        """The events of the last report, the oldest first."""
        return [(event.kind, event.queue, event.reason) for event in reversed(self.reports[-1].events)]


class FakeWorker:
    """A worker process: it is ready, ends or dies when a test says so; a drain ends it at the next look but one."""

    def __init__(self, world: World, settings: Settings, host: str, queue: str, options: dict[str, Any]) -> None:
        self._world = world
        self.given = (host, queue, settings.drain_s, options)
        self.queue = queue
        self.pid = 100 + len(world.workers)
        self.state = PlaceState.STARTING
        self.since = world.now
        self.is_ready = self.is_hurried = False
        self.died: str | None = None
        self.looks_left = 2
        self.exit_code: int | None = None

    @property
    def in_state_s(self) -> float:
        return self._world.now - self.since

    @property
    def has_drained(self) -> bool:
        return self.state is PlaceState.DRAINING and self.exit_code == 0

    def look(self) -> bool:
        if self.died is not None:
            self.exit_code = 1
        elif self.state is PlaceState.DRAINING:
            self.looks_left -= 1
            self.exit_code = None if self.looks_left else 0
        elif self.is_ready and self.state is PlaceState.STARTING:
            self.state, self.since = PlaceState.SERVING, self._world.now
        return self.exit_code is None

    def drain(self) -> None:
        self.state, self.since = PlaceState.DRAINING, self._world.now

    def hurry(self) -> None:
        self.is_hurried = True

    def kill(self) -> None:
        self.died = "killed"

    def why_ended(self) -> str:
        return self.died or "it ended"


def version(name: str, memory: int = 300, **changes: Any) -> HostedVersion:
    values: dict[str, Any] = {"source": "", "dtype": "float16", "engine": None, "memory_bytes": memory, "load_s": 6.0}
    values |= {"is_unverified": False, "created_at": AT}
    return HostedVersion(model=name, version=1, queue=f"{name}@1", **values | changes)


def placed(report: HostReport) -> list[tuple[str, str, int, int, int | None]]:
    return [(one.queue, one.state.value, one.memory_bytes, one.used_bytes, one.pid) for one in report.places]


def expected(report: HostReport) -> dict[str, tuple[float | None, str | None]]:
    return {one.queue: (one.in_s, one.text) for one in report.outlooks}
