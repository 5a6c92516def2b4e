"""The turns of a host, with scripted workers and a scripted store: starts, drains, notes and reports."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from store.errors import Conflict, Unavailable
from store.hosts.host_reports import HostPlace, HostReport, PlaceState
from store.hosts.hosted_versions import HostedVersion, QueueWork, WaitingWork
from store.metrics.host_metrics import HostMetrics
from store.registry.engine_spec import EngineKind, EngineSpec
from store.scheduling.scale_decisions import StoredDecision
from store.settings import Settings
from workers.host import host_loop, model_host, scaled_host
from workers.host.host_loop import HostLoop
from workers.host.kept_servers import ServerAddress
from workers.host.model_host import ModelHost
from workers.host.placement import Rules
from workers.host.scaled_host import ScaledHost

AT = datetime(2026, 11, 29, tzinfo=UTC)
HOME = Settings(database_url="postgresql://nobody@localhost/none", drain_s=7.0, autoscale_drain_s=90.0)


class World:
    """The clock, the store and the workers of one host. ``turns``: what happens before each turn of the host."""

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


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for name in ("LOOK_S", "_RETRY_S", "_END_LOOK_S"):
        monkeypatch.setattr(host_loop, name, 0.0)
    monkeypatch.setattr(host_loop, "lead", world.lead)
    monkeypatch.setattr(host_loop, "last_report", lambda _db, _name: None)
    monkeypatch.setattr(host_loop, "remove_report", lambda _db, name: world.removed.append(name))
    for module in (model_host, scaled_host):
        monkeypatch.setattr(module, "read_hosted_versions", lambda _db: world.versions)
        monkeypatch.setattr(module, "write_report", world.write_report)
        monkeypatch.setattr(module, "ResidentWorker", world.new_worker)
        monkeypatch.setattr(module, "used_memory", lambda pid: pid)
        monkeypatch.setattr(module, "now", lambda: AT)
    monkeypatch.setattr(model_host, "read_waiting_work", lambda _db: world.work)
    monkeypatch.setattr(model_host, "read_hosts", lambda _db: world.others)
    monkeypatch.setattr(scaled_host, "read_decisions", lambda _db: world.decisions)
    return world


def version(name: str, memory: int = 300, **changes: Any) -> HostedVersion:
    values: dict[str, Any] = {"source": "", "dtype": "float16", "engine": None, "memory_bytes": memory, "load_s": 6.0}
    values |= {"is_unverified": False, "created_at": AT}
    return HostedVersion(model=name, version=1, queue=f"{name}@1", **values | changes)


def model_hosted(world: World, budget: int = 500) -> tuple[ModelHost, HostMetrics]:
    metrics = HostMetrics()
    rules = Rules(budget, residence_s=10, turn_s=60, drain_s=5, swap_share=0.5)
    return ModelHost(HOME, "h1", rules, metrics, clock=lambda: world.now), metrics


def placed(report: HostReport) -> list[tuple[str, str, int, int, int | None]]:
    return [(one.queue, one.state.value, one.memory_bytes, one.used_bytes, one.pid) for one in report.places]


def expected(report: HostReport) -> dict[str, tuple[float | None, str | None]]:
    return {one.queue: (one.in_s, one.text) for one in report.outlooks}


SWAP_METRICS = {
    ("swaps_total", None): 1,
    ("starts_total", "served"): 1,
    ("place_wait_seconds_count", None): 1,
    ("place_wait_seconds_sum", None): 6.0,
}


def metric(metrics: Any, name: str, outcome: str | None) -> float | None:
    """Return the value of a metric of the host, with this outcome where it counts outcomes."""
    value: float | None = metrics.registry.get_sample_value(
        f"headrace_host_{name}", {} if outcome is None else {"outcome": outcome}
    )
    return value


def test_one_place_goes_from_a_version_to_another(world: World) -> None:
    world.versions = [version("a"), version("b", adapters=("tone@1",)), version("c", memory=501)]
    host, metrics = model_hosted(world)

    def jobs_for(queue: str, **work: Any) -> None:
        world.work = WaitingWork({queue: QueueWork(**work)})

    def a_serves() -> None:
        world.workers[0].is_ready = True
        jobs_for("b@1", tokens=9000, oldest_age_s=3.0)

    def later() -> None:
        world.now += 20.0

    world.run(host, lambda: jobs_for("a@1", tokens=100, oldest_age_s=5.0), a_serves, later, *[lambda: None] * 2)
    first, second, third, fourth, fifth = world.reports[:5]
    assert [one.given for one in world.workers] == [
        ("h1", f"{name}@1", 7.0, {"start_limit_s": 300.0, "server": None}) for name in "ab"
    ]
    assert placed(first) == [("a@1", "starting", 300, 0, None)]
    assert placed(second) == [("a@1", "serving", 300, 0, 100)], "its memory is read every 2 s"
    assert placed(third) == [("a@1", "draining", 300, 100, 100)]
    assert placed(fourth) == [("a@1", "draining", 300, 100, 100)]
    assert placed(fifth) == [("b@1", "starting", 300, 0, None)]
    too_large = "it needs about 0 MiB, and the budget of the host is 0 MiB: give the host more with --memory"
    assert expected(first)["c@1"] == (None, too_large)
    # The last start of a took 1 s, so it stays for a residence of 10 s and drains for 5 s; b starts in 4 s + 6 s.
    assert [expected(second)[queue] for queue in ("b@1", "tone@1")] == [(25.0, None)] * 2
    assert [one.num_swaps for one in world.reports[:5]] == [0, 0, 1, 1, 1]
    assert world.told() == [
        ("started", "a@1", "100 tokens wait since 5 s, and it fits"),
        ("serving", "a@1", "ready after 1.0 s"),
        ("draining", "a@1", "idle for 21 s; b@1: 9,000 tokens wait since 24 s"),
        ("ended", "a@1", "it has drained"),
        ("started", "b@1", "9,000 tokens wait since 26 s, and it fits"),
    ]
    assert world.workers[1].state is PlaceState.DRAINING, "a host that stops drains its workers"
    assert (world.removed, first.name, first.budget_bytes) == (["h1"], "h1", 500)
    assert {key: metric(metrics, *key) for key in SWAP_METRICS} == SWAP_METRICS


def test_a_worker_that_dies_is_started_again_after_a_pause(world: World) -> None:
    world.versions = [version("a")]
    host, metrics = model_hosted(world)
    world.work = WaitingWork({"a@1": QueueWork(tokens=10, oldest_age_s=1.0)})

    def it_dies() -> None:
        world.workers[-1].died = "CUDA is not here"

    def pause_ends() -> None:
        world.now += 4.0

    world.run(host, *[lambda: None] * 3, it_dies, lambda: None, pause_ends, lambda: None, it_dies)
    paused = world.reports[3]
    assert (placed(world.reports[2]), placed(paused)) == ([("a@1", "starting", 300, 0, 100)], [])
    assert placed(world.reports[5]) == [("a@1", "starting", 300, 0, None)]
    assert placed(world.reports[6]) == [("a@1", "starting", 300, 0, 101)], "without the memory of the one before"
    assert expected(paused) == {"a@1": (None, "its worker could not be started; it is tried again in 5 s")}
    assert [kind for kind, _, _ in world.told()] == ["started", "failed", "started", "failed"]
    assert [reason for _, _, reason in world.told()][1::2] == [
        "CUDA is not here; again in 5 s",
        "CUDA is not here; again in 10 s",
    ]
    assert metrics.registry.get_sample_value("headrace_host_starts_total", {"outcome": "failed"}) == 2


class FakeServers:
    """The servers that a host keeps: one may sleep after its worker, or fail."""

    def __init__(self, _settings: Settings, _db: object, sleep_bytes: int) -> None:
        self.told: list[object] = [sleep_bytes]
        self.broken: str | None = None
        self.asleep: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.told.append(name)

    def keeps(self, version: HostedVersion) -> bool:
        return version.engine is not None

    def address_for(self, version: HostedVersion) -> ServerAddress:
        return ServerAddress(f"http://{version.queue}", "key")

    def tend(self, known: Any) -> None:
        self.told.append(("tend", *known))

    def used(self, _queue: str) -> int:
        return 7

    def failure(self, _queue: str) -> str | None:
        return self.broken

    def rests(self, queue: str, *, may_sleep: bool, weights: int) -> bool:
        self.told.append((queue, may_sleep, weights))
        self.asleep = (queue,) if may_sleep else ()
        return True


@pytest.mark.parametrize("breaks", [False, True])
def test_a_server_that_the_host_keeps_sleeps_after_its_worker_or_fails_it(
    world: World, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    made: list[FakeServers] = []
    monkeypatch.setattr(model_host, "KeptServers", lambda *given: made.append(FakeServers(*given)) or made[0])
    world.versions = [version("a", engine=EngineSpec(kind=EngineKind.VLLM, served_model="a")), version("b")]
    world.work = WaitingWork({"a@1": QueueWork(tokens=10, oldest_age_s=1.0)})
    rules = Rules(500, residence_s=10, turn_s=60, drain_s=5, swap_share=0.5)
    host = ModelHost(HOME, "h1", rules, HostMetrics(), sleep_bytes=9, clock=lambda: world.now)
    (servers,) = made

    def a_serves() -> None:
        world.workers[0].is_ready = True

    def work_for_b_comes_later() -> None:
        world.now += 20.0
        world.work = WaitingWork({"b@1": QueueWork(tokens=9000, oldest_age_s=3.0)})
        servers.broken = "its server ended: no CUDA" if breaks else None

    world.run(host, lambda: None, a_serves, work_for_b_comes_later, *[lambda: None] * 2)
    assert world.workers[0].given[3] == {"start_limit_s": 1800.0, "server": ServerAddress("http://a@1", "key")}
    assert servers.told[:2] == [9, ("tend", "a@1", "b@1")]
    assert ("a@1", not breaks, 0) in servers.told
    assert servers.told[-1] == "close"
    assert "keep_none" in servers.told, "when the host ends no server sleeps"
    if breaks:
        assert ("failed", "a@1", "its server ended: no CUDA; again in 5 s") in world.told()
        assert world.workers[0].died == "killed"
    else:
        assert placed(world.reports[2]) == [("a@1", "draining", 300, 107, 100)], "with the memory of its server"
        assert ("ended", "a@1", "it has drained; its server sleeps") in world.told()
        assert world.reports[-1].asleep == ("a@1",)


def test_a_host_waits_for_workers_of_the_one_before_it_and_keeps_its_own_while_postgres_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = HostPlace(queue="a@1", state=PlaceState.SERVING, since=AT, memory_bytes=1)
    before = HostReport(name="h1", started_at=AT, budget_bytes=1, places=(place, place.model_copy(update={"pid": 5})))
    waited: list[tuple[str, list[int], float]] = []
    monkeypatch.setattr(host_loop, "last_report", lambda _db, _name: before)
    monkeypatch.setattr(host_loop, "end_left_over", lambda *given: len(waited.append(given) or given[1]))
    world.versions = [version("a")]
    world.work = WaitingWork({"a@1": QueueWork(tokens=10, oldest_age_s=1.0)})
    host, _ = model_hosted(world)

    def postgres_goes() -> None:
        raise Unavailable("Postgres went away")

    world.run(host, lambda: None, postgres_goes, lambda: None)
    assert waited == [("h1", [5], 7.0 + 20.0)]
    assert len(world.workers) == 1
    assert placed(world.reports[-1]) == [("a@1", "starting", 300, 100, 100)]


def test_a_version_that_another_serves_or_has_been_granted_is_not_started(world: World) -> None:
    world.versions = [version(name, memory=1) for name in ("a", "b", "c", "d")]
    place = HostPlace(queue="a@1", state=PlaceState.SERVING, since=AT, memory_bytes=1)
    world.others = [
        HostReport(name=name, started_at=AT, budget_bytes=1, places=(one,))
        for name, one in (("h2", place), ("h1", place.model_copy(update={"queue": "d@1"})))
    ]
    work = {f"{name}@1": QueueWork(tokens=1, oldest_age_s=1.0) for name in "abcd"}
    world.work = WaitingWork(work, {"b@1": 2, "d@1": 0})
    world.taken = {"c@1"}
    host, _ = model_hosted(world)
    world.run(host, lambda: None)
    assert [one.queue for one in world.workers] == ["d@1"]
    (report,) = world.reports[:1]
    assert {queue: text for queue, (_, text) in expected(report).items() if text} == {
        "a@1": "the host h2 serves it",
        "b@1": "a worker outside this host serves it",
    }


def test_a_version_that_is_not_verified_gets_a_place_for_it(world: World) -> None:
    world.versions = [version("a", is_unverified=True), version("mine")]
    metrics = HostMetrics()
    host = ModelHost(HOME, "h1", Rules(500), metrics, is_ours=lambda one: one.model == "a", clock=lambda: world.now)
    world.run(host, lambda: None)
    assert [(kind, queue) for kind, queue, _ in world.told()] == [("started", "a@1")]
    assert expected(world.reports[0]).keys() == {"a@1"}


def test_a_name_that_another_host_has_is_refused_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.is_held = False
    host, _ = model_hosted(world)

    def look() -> None:
        world.now += 6.0

    monkeypatch.setattr(host, "_look", look)
    with pytest.raises(Conflict, match="a host named h1 is running: stop it, or give another --name"):
        world.run(host)
    assert world.now == 1000.0 + 24.0, "20 s after its start, for a host that was killed a moment ago"
    assert world.removed == [], "the report is that of the other one"


def decided(world: World, **numbers: int) -> None:
    world.decisions = {
        f"{name}@1": StoredDecision(f"{name}@1", number, "jobs wait", AT) for name, number in numbers.items()
    }


def test_workers_follow_what_is_decided_and_the_youngest_leave_first(world: World) -> None:
    world.versions = [version("a", adapters=("tone@1",)), version("b")]
    metrics = HostMetrics()
    host = ScaledHost(HOME, "h1", metrics, is_ours=lambda one: one.model != "b", clock=lambda: world.now)

    def first_serves() -> None:
        world.workers[0].is_ready = True
        world.now += 5.0

    def second_serves() -> None:
        world.workers[1].is_ready = True
        world.now += 5.0

    world.run(
        host,
        lambda: decided(world, a=2, b=3),
        first_serves,
        second_serves,
        lambda: decided(world, a=1),
        lambda: None,
        lambda: decided(world),
    )
    assert [one.given for one in world.workers] == [
        ("h1", "a@1", 90.0, {"start_limit_s": 300.0, "number": number}) for number in (1, 2)
    ]
    assert placed(world.reports[0]) == [("a@1", "starting", 0, 0, None)]
    assert placed(world.reports[2]) == [("a@1", "serving", 100, 100, 100), ("a@1", "serving", 101, 101, 101)]
    assert placed(world.reports[4]) == [("a@1", "serving", 100, 100, 100), ("a@1", "draining", 101, 101, 101)]
    assert placed(world.reports[5]) == [("a@1", "serving", 100, 100, 100)], "without a decision it stays"
    assert expected(world.reports[0]) == {"a@1": (10.0, None), "tone@1": (10.0, None)}
    assert expected(world.reports[2])["a@1"] == (12.0, None), "as the last start took"
    assert world.told() == [
        *[("started", "a@1", "2 are wanted: jobs wait")] * 2,
        ("serving", "a@1", "ready after 6.0 s"),
        ("serving", "a@1", "ready after 12.0 s"),
        ("draining", "a@1", "1 are wanted: jobs wait"),
        ("ended", "a@1", "it has drained"),
    ]
    assert [one.is_hurried for one in world.workers] == [False, False]


def test_a_scaled_worker_that_dies_is_replaced_after_its_pause_and_a_stop_hurries_those_that_are_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.versions = [version("a")]
    metrics = HostMetrics()
    host = ScaledHost(HOME, "h1", metrics, clock=lambda: world.now)

    def it_dies() -> None:
        world.workers[0].died = "no memory"

    def pause_ends() -> None:
        world.now += 5.0

    def drains_for_long() -> None:
        world.workers[-1].looks_left = 50

    def count_time() -> None:
        world.now += 1.0

    monkeypatch.setattr(host, "_pause", count_time)
    world.run(host, lambda: decided(world, a=1), it_dies, lambda: None, pause_ends, drains_for_long)
    assert len(world.workers) == 2
    assert ("failed", "a@1", "no memory; again in 5 s") in world.told()
    assert expected(world.reports[1]) == {"a@1": (None, "its worker could not be started; it is tried again in 5 s")}
    assert [one.is_hurried for one in world.workers] == [False, True]
    assert world.removed == ["h1"]
    assert metrics.registry.get_sample_value("headrace_host_starts_total", {"outcome": "failed"}) == 1
