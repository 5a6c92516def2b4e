"""The turns of a host that starts as many workers as the dispatcher decided: starts, drains and reports."""

import pytest

from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.scaled_host import ScaledHost
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.scheduling.scale_decisions import StoredDecision
from tests.features.hosts.scripted_host import AT, HOME, World, expected, placed, version


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

    monkeypatch.setattr(host, "pause", count_time)
    world.run(host, lambda: decided(world, a=1), it_dies, lambda: None, pause_ends, drains_for_long)
    assert len(world.workers) == 2
    assert any(kind == "failed" and "no memory" in reason for kind, _, reason in world.told())
    ((begins_in_s, obstacle),) = expected(world.reports[1]).values()
    assert (begins_in_s, str(obstacle)[-4:]) == (None, " 5 s")
    assert [one.is_hurried for one in world.workers] == [False, True]
    assert world.removed == ["h1"]
    assert metrics.registry.get_sample_value("headrace_host_starts_total", {"outcome": "failed"}) == 1


def test_after_a_time_without_postgres_a_host_leaves_the_places_to_those_that_had_them(world: World) -> None:
    """The report of the other host is as old as its own, and would not count."""
    world.versions, world.taken = [version("a")], {"a@1"}
    host = ScaledHost(HOME, "h2", HostMetrics(), clock=lambda: world.now)
    decided(world, a=2)

    def postgres_comes_back() -> None:
        world.now += GONE_AFTER_S
        world.taken = set()

    def other_reports() -> None:
        world.taken = {"a@1"}

    def other_is_gone() -> None:
        world.taken = set()

    def time_passes() -> None:
        world.now += GONE_AFTER_S / 2 - 1

    world.run(host, lambda: None, postgres_comes_back, other_reports, other_is_gone, time_passes)
    assert world.workers == []
    host = ScaledHost(HOME, "h3", HostMetrics(), clock=lambda: world.now)
    passes = [time_passes] * 3
    world.run(host, postgres_comes_back, lambda: None, *passes)
    assert len(world.workers) == 2, "nobody else has the place"
