"""The figures of a failover: pauses within a fault, and the plan of a seed."""

import pytest

from tests.chaos.history import Attempt, History
from tests.failover.faults import AGAIN, PARTS, plan
from tests.failover.figures import longest_pause, of_faults, without_leader

DISPATCHER = {"kind": "signal", "member": "dispatcher"}


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        ([9.0, 10.5, 11.0, 14.5, 19.5], 5.0),  # between two of them, and not from before the fault
        ([9.0, 16.0], 6.0),  # from the fault to the first
        ([9.0, 12.0, 30.0], 8.0),  # none after the last, as far as was looked
        ([9.0, 25.0], 15.0),  # none at all while it lasted: until the first after it
        ([], 10.0),
    ],
)
def test_a_pause_is_the_longest_time_without_an_event_from_the_fault_on(times: list[float], pause: float) -> None:
    assert longest_pause(times, 10.0, 20.0) == pause


def test_each_fault_has_the_pauses_of_its_own_time() -> None:
    history = History(
        client=[{"kind": "accepted", "t": at} for at in (10.5, 11.0, 21.0)],
        attempts=[Attempt("a", 1, "w", started_at=10.25), Attempt("b", 1, "w", started_at=13.0)],
        nemesis=[
            {"kind": "phase", "name": "kill_api", "t": 10.0},
            {"kind": "phase", "name": "over", "t": 14.0},
            {"kind": "phase", "name": "redis_failover", "t": 20.0},
            {"kind": "phase", "name": "over", "t": 22.0},
        ],
    )
    first, second = of_faults(history)
    assert first == {
        "fault": "kill_api",
        "lasted_s": 4.0,
        "without_accept_s": 3.0,
        "without_claim_s": 2.75,
        "accepted": 2,
    }
    assert (second["fault"], second["without_accept_s"], second["accepted"]) == ("redis_failover", 1.0, 1)


def test_a_leader_is_missed_from_its_signal_until_another_leads() -> None:
    signals = [{**DISPATCHER, "t": 100.0, "signal": "SIGKILL"}, {**DISPATCHER, "t": 200.0, "signal": "SIGCONT"}]
    led_from = ["1970-01-01T00:01:43.500Z", "1970-01-01T00:00:05Z"]
    assert without_leader(History(nemesis=signals), led_from) == [3.5]


def test_a_plan_has_each_part_once_and_then_pairs_and_is_of_its_seed() -> None:
    found = plan(7, 3)
    assert sorted(name for (name,) in found[: len(PARTS)]) == sorted(PARTS)
    assert all(len(set(pair) & set(AGAIN)) == 2 for pair in found[len(PARTS) :])
    assert (len(found), found) == (len(PARTS) + 3, plan(7, 3))
    assert plan(8, 3) != found
