"""What a host knows of versions and how it chooses between them: exact numbers of pure functions."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace.features.hosts.placement import Resident, Rules, VersionLoad, decide, forecast
from headrace.features.hosts.version_history import VersionHistory
from headrace.features.hosts.version_needs import VersionNeeds
from headrace.store.hosts.host_reports import PlaceState
from headrace.store.hosts.hosted_versions import PROCESS_START_S, HostedVersion
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from tests.features.hosts.test_placement import RULES, load, moves, serving

MIB = 1 << 20
AT = datetime(2026, 11, 29, tzinfo=UTC)
INTERACTIVE, STANDARD, BATCH = (
    CLASS_RANKS[name] for name in (ServiceClass.INTERACTIVE, ServiceClass.STANDARD, ServiceClass.BATCH)
)


def version(**changes: Any) -> HostedVersion:
    one = HostedVersion("a", 1, "a@1", "", "float16", None, None, None, is_unverified=False, created_at=AT)
    return replace(one, **changes)


@pytest.mark.parametrize(
    ("changes", "pressure", "running"),
    [
        ({}, 4 * 100 * 10, 4 * 7),
        ({"class_rank": INTERACTIVE}, 16 * 100 * 10, 16 * 7),
        ({"class_rank": BATCH}, 1 * 100 * 10, 7),
        ({"wait_s": 0.5}, 4 * 100 * 1, 4 * 7),
        ({"deadline_in_s": 64.9}, 4 * 4 * 100 * 10, 4 * 7),
        ({"deadline_in_s": 65.0}, 4 * 100 * 10, 4 * 7),
    ],
)
def test_pressure_is_tokens_times_seconds_by_class_and_deadline(
    changes: dict[str, Any], pressure: float, running: float
) -> None:
    one = replace(VersionLoad("a", 1, 5.0, 100, 10.0, running_tokens=7), **changes)
    assert (one.pressure, one.running_pressure) == (pressure, running)


def test_a_place_is_kept_for_a_multiple_of_the_swap() -> None:
    rules = Rules(1, residence_s=10, turn_s=60, drain_s=5, swap_share=0.25)
    assert [rules.residence_before(load_s) for load_s in (1, 5)] == [18, 30]
    assert replace(rules, residence_s=20).residence_before(1) == 20
    assert [rules.turn_before(load_s) for load_s in (1, 7, 15)] == [60, 60, 100]
    assert rules.longest_wait_s(3, 15) == 60 + 3 * (100 + 5 + 15)


def test_idle_versions_leave_before_busy_ones_and_only_as_many_as_are_needed() -> None:
    rules = Rules(budget_bytes=6)
    busy = load("busy", 2, tokens=1, wait_s=1)
    residents = [serving("busy", 2, in_state_s=900), serving("a", 1, idle_s=30), serving("b", 3, idle_s=20)]
    plan = decide([busy, load("new", 3)], residents, rules)
    assert moves(plan) == ([], ["b"]), "the third of a megabyte of a would not be needed"
    assert (plan.drains[0].by, "20 s;" in plan.drains[0].reason) == ("new", True)
    plan = decide([busy, load("new", 6, tokens=9000)], residents, rules)
    assert moves(plan) == ([], ["a", "b", "busy"])
    assert "turn of 60 s" in plan.drains[2].reason
    much = decide([busy, load("new", 6, tokens=9000)], [replace(residents[0], in_state_s=59.0), *residents[1:]], rules)
    assert "4 times" in much.drains[2].reason


@pytest.mark.parametrize("state", [PlaceState.STARTING, PlaceState.DRAINING])
def test_only_a_version_that_serves_is_displaced(state: PlaceState) -> None:
    residents = [replace(serving("a", 4, idle_s=99), state=state)]
    assert moves(decide([load("b", 4)], residents, RULES)) == ([], [])


def test_memory_of_a_drain_is_taken_once_and_two_versions_of_a_round_share_it() -> None:
    draining = [Resident("old", 2, PlaceState.DRAINING, 1.0), serving("a", 2, in_state_s=1.0)]
    plan = decide([load("b", 2, tokens=900), load("c", 2)], draining, RULES)
    assert moves(plan) == ([], []), "b waits for the drain, and a has only begun"
    over = decide([], [serving("a", 3, idle_s=1), serving("b", 3, idle_s=9), serving("c", 3, idle_s=5)], RULES)
    assert [(one.queue, one.by) for one in over.drains] == [("b", None), ("c", None)]
    assert moves(decide([], [serving("alone", 9)], RULES)) == ([], []), "the last one stays, however large"


def test_equal_versions_start_by_name_and_overdue_ones_by_their_wait() -> None:
    loads = [load("b", 1), load("a", 1), load("late", 1, tokens=1, wait_s=61), load("later", 1, tokens=1, wait_s=60)]
    plan = decide(loads, [], RULES)
    assert [one.queue for one in plan.starts] == ["late", "later", "a", "b"]
    assert " 61 s" in plan.starts[0].reason
    refused = decide([load("huge", 3 * 1024 * MIB)], [], Rules(2048 * MIB)).refused
    assert [size in refused["huge"] for size in ("3,072 MiB", "2,048 MiB", "--memory")] == [True] * 3
    assert decide([load("whole", 4)], [], RULES).starts != ()


def test_a_forecast_waits_for_drains_starts_and_turns() -> None:
    rules = Rules(budget_bytes=4)
    starting = Resident("s", 4, PlaceState.STARTING, 2.0)
    own = load("s", 4, tokens=0, load_s=7)
    # Its load goes on for 5 s; it is idle, so it stays for its residence of 12 s, and drains for 5 s.
    assert forecast([own, load("n", 4, tokens=0, load_s=3)], [starting], rules) == {"s": 5.0, "n": 5 + 12 + 5 + 3}
    assert forecast([own], [replace(starting, in_state_s=99.0)], rules) == {"s": 1.0}
    draining = Resident("d", 4, PlaceState.DRAINING, 2.0)
    assert forecast([load("n", 4, tokens=0, load_s=3)], [draining], rules) == {"n": 3 + 3}
    assert forecast([load("d", 4, tokens=0, load_s=3)], [draining], rules) == {"d": 3 + 3}, "it may come back"
    # Two that wait: the second has the place after the turn of the first.
    both = forecast([load("x", 4, tokens=900), load("y", 4)], [], rules)
    assert both == {"x": 1.0, "y": 1 + 60 + 1}
    assert forecast([replace(load("x", 4), obstacle="it failed")], [], rules) == {}


def test_a_version_is_counted_with_the_most_that_was_seen_or_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(3 * MIB))
    (tmp_path / "b.safetensors").write_bytes(bytes(MIB))
    (tmp_path / "tokenizer.json").write_bytes(bytes(MIB))
    needs = VersionNeeds()
    one = version(source=str(tmp_path))
    assert (needs.weights(one), needs.memory_bytes(one)) == (4 * MIB, 516 * MIB)
    assert needs.weights(replace(one, dtype="float32")) == 8 * MIB
    assert needs.load_s(one) == PROCESS_START_S + 4 / 500
    assert needs.load_s(replace(one, load_s=2.5)) == PROCESS_START_S + 2.5
    server = EngineSpec(kind=EngineKind.VLLM, served_model="a")
    assert needs.weights(replace(one, engine=server)) == 4 * MIB
    away = server.model_copy(update={"url": "http://gpu:8000"})
    assert (needs.weights(replace(one, engine=away)), needs.memory_bytes(version())) == (0, 512 * MIB)
    assert needs.weights(version(queue="gone@1", source=str(tmp_path / "gone"))) == 0
    needs.saw_memory("a@1", 700)
    needs.saw_memory("a@1", 600)
    assert needs.memory_bytes(one) == 700
    assert [needs.memory_bytes(replace(one, memory_bytes=measured)) for measured in (650, 800)] == [700, 800]
    assert needs.memory_bytes(version(queue="b@1", memory_bytes=5)) == 5
    needs.saw_start("a@1", 9.0)
    assert needs.load_s(replace(one, load_s=2.5)) == 9.0


def test_a_version_is_idle_since_its_last_job_and_a_pause_ends_at_its_longest() -> None:
    history = VersionHistory()
    assert [history.idle_s("a@1", at, is_busy=False) for at in (10.0, 15.0)] == [0.0, 5.0]
    assert history.idle_s("a@1", 20.0, is_busy=True) == 0.0
    assert history.idle_s("a@1", 22.0, is_busy=False) == 2.0
    history.left("a@1", 23.0)
    assert history.idle_s("a@1", 30.0, is_busy=False) == 0.0
    assert history.waits_no_more("a@1", 30.0) is None
    assert history.wait_s("a@1", 100.0, 40.0) == 17.0, "since it left"
    assert history.waits_no_more("a@1", 45.0) == 22.0
    pauses = [history.failed("a@1", 100.0) for _ in range(9)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert str(history.obstacle("a@1", 699.0)).endswith(" 1 s")
    assert (history.obstacle("a@1", 700.0), history.obstacle("b@1", 100.0)) == (None, None)
    history.is_steady("a@1")
    assert (history.obstacle("a@1", 100.0), history.failed("a@1", 100.0)) == (None, 5)
