"""A normal job may count as poison after three injected faults, but not after fewer."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.chaos.causes import Causes
from tests.chaos.history import Attempt, History

LOST = [
    Attempt("job_1", epoch, f"worker-{epoch}@host:{epoch}:boot", float(10 * epoch), 10.0 * epoch + 5, "worker_lost")
    for epoch in (1, 2, 3)
]


def signals(*pids: int, name: str = "SIGKILL") -> list[dict[str, Any]]:
    """Each process gets a fault while it runs the job."""
    return [
        {"t": 10.0 * pid + 1, "kind": "signal", "member": "worker", "name": f"worker-{pid}", "pid": pid, "signal": name}
        for pid in pids
    ]


def beside(attempt: Attempt, job: str, *, later_s: float = 0.0) -> Attempt:
    """Another job in the same worker."""
    return Attempt(job, 1, attempt.worker, attempt.started_at + later_s, attempt.started_at + later_s + 1)


def explains(nemesis: Sequence[dict[str, Any]], *others: Attempt) -> bool:
    history = History(nemesis=nemesis, attempts=[*LOST, *others])
    return Causes(history, frozenset({"poison_1", "poison_2"})).explain("job_1")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_three_strokes_of_the_nemesis_explain_it(name: str) -> None:
    assert explains(signals(1, 2, 3, name=name))


def test_so_do_two_and_a_poison_job_beside_it() -> None:
    assert explains(signals(1, 2), beside(LOST[2], "poison_1"))
    assert explains(signals(1), beside(LOST[1], "poison_1"), beside(LOST[2], "poison_2"))


def outage(pid: int, fault: str = "postgres_half_open", target: str = "worker") -> list[dict[str, Any]]:
    """Workers cannot reach Postgres while this one runs the job."""
    since = 10.0 * pid + 1
    return [
        {"t": since, "kind": "strike", "fault": fault, "target": target, "for_s": 3.0},
        {"t": since + 3, "kind": "strike_over", "fault": fault},
    ]


def test_so_do_outages_that_the_worker_outlived_and_a_pause_at_a_failpoint() -> None:
    went_on = {"t": 45.0, "kind": "signal", "member": "worker", "name": "worker-3", "pid": 3, "signal": "SIGCONT"}
    assert explains([*outage(1), *outage(2, "connections_out", "postgres"), went_on])
    assert not explains([*outage(1), *outage(1), went_on]), "one outage may cost it one"
    assert not explains([*outage(1), *outage(2, target="api"), went_on]), "the worker met with none"
    died = {"t": 27.0, "kind": "exit", "member": "worker", "name": "worker-2", "pid": 2, "code": 86}
    assert not explains([*outage(1), *outage(2), went_on, died]), "a worker that died was not merely cut off"


def test_one_stroke_explains_one_attempt_only() -> None:
    both = [{"t": 11.0, "kind": "strike", "fault": "postgres_stall", "target": "postgres", "for_s": 30.0}]
    assert not explains([*both, *signals(3)])
    assert explains([*both, *signals(2, 3)])
    assert explains([*both, *signals(1, 2)])


def test_nothing_less_does() -> None:
    assert not explains([])
    assert not explains(signals(1, 2))
    assert not explains(signals(1, 2, 3, name="SIGTERM"))
    assert not explains(signals(1), beside(LOST[1], "poison_1"), beside(LOST[2], "poison_1")), "one may cost it one"
    assert not explains(signals(1, 2), beside(LOST[2], "an innocent")), "nobody who kills was there"
    assert not explains(signals(1, 2), beside(LOST[2], "poison_1", later_s=60)), "it was there later"
    assert not explains([event | {"t": 0.5} for event in signals(1, 2, 3)]), "struck before they had it"
