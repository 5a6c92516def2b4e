"""The turns of a host within a memory budget, with scripted workers and a scripted store."""

from collections.abc import Callable
from typing import Any

import pytest

from headrace.features.hosts import host_loop, model_host
from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.kept_servers import ServerAddress
from headrace.features.hosts.model_host import ModelHost
from headrace.features.hosts.placement import Rules
from headrace.features.hosts.waiting_work import QueueWork, WaitingWork
from headrace.store.errors import Conflict, Unavailable
from headrace.store.hosts.host_reports import HostPlace, HostReport, PlaceState
from headrace.store.hosts.hosted_versions import HostedVersion
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.settings import Settings
from tests.features.hosts.scripted_host import AT, HOME, World, expected, placed, version


def model_hosted(world: World, budget: int = 500) -> tuple[ModelHost, HostMetrics]:
    metrics = HostMetrics()
    rules = Rules(budget, residence_s=10, turn_s=60, drain_s=5, swap_share=0.5)
    return ModelHost(HOME, "h1", rules, metrics, clock=lambda: world.now), metrics


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
    begins_in_s, too_large = expected(first)["c@1"]
    assert (begins_in_s, "--memory" in str(too_large)) == (None, True)
    # The last start of a took 1 s, so it stays for a residence of 10 s and drains for 5 s; b starts in 4 s + 6 s.
    assert [expected(second)[queue] for queue in ("b@1", "tone@1")] == [(25.0, None)] * 2
    assert [one.num_swaps for one in world.reports[:5]] == [0, 0, 1, 1, 1]
    told = [("started", "a@1"), ("serving", "a@1"), ("draining", "a@1"), ("ended", "a@1"), ("started", "b@1")]
    assert [(kind, queue) for kind, queue, _ in world.told()] == told
    assert "21 s; b@1" in world.told()[2][2]
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
    ((begins_in_s, obstacle),) = expected(paused).values()
    assert (begins_in_s, str(obstacle)[-4:]) == (None, " 5 s")
    assert [kind for kind, _, _ in world.told()] == ["started", "failed", "started", "failed"]
    failures = [reason for _, _, reason in world.told()][1::2]
    assert [("CUDA is not here" in reason, reason[-4:]) for reason in failures] == [(True, " 5 s"), (True, "10 s")]
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
        assert any(kind == "failed" and "no CUDA" in reason for kind, _, reason in world.told())
        assert world.workers[0].died == "killed"
    else:
        assert placed(world.reports[2]) == [("a@1", "draining", 300, 107, 100)], "with the memory of its server"
        assert any(kind == "ended" and "server sleeps" in reason for kind, _, reason in world.told())
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
    named = {queue: "host h2" in text for queue, (_, text) in expected(report).items() if text}
    assert named == {"a@1": True, "b@1": False}


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

    monkeypatch.setattr(host, "look", look)
    with pytest.raises(Conflict, match="host named h1"):
        world.run(host)
    assert world.now == 1000.0 + 24.0, "20 s after its start, for a host that was killed a moment ago"
    assert world.removed == [], "the report is that of the other one"
