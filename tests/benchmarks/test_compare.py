"""The judge and the schedule of the comparison benchmark."""

import pytest

from benchmarks.compare.__main__ import broken
from benchmarks.compare.checker import Evidence, judge
from benchmarks.compare.client import ClientLog, Told
from benchmarks.compare.nemesis import STOP_S, Kind, schedule


def log_of(**states: str | None) -> ClientLog:
    log = ClientLog()
    for job_id, state in states.items():
        log.jobs[job_id] = Told(accepted_at=10.0, state=state, ended_at=None if state is None else 12.5)
    return log


def test_a_job_without_an_end_is_lost_unless_it_is_still_kept() -> None:
    log = log_of(ended="succeeded", told="failed", gone=None, ran=None, waiting=None)
    verdict = judge(log, Evidence(ends={"ended": 1, "ran": 1}, recorded={"ended": 1}, kept={"waiting"}))
    assert (verdict.accepted, verdict.succeeded, verdict.failed) == (5, 1, 1)
    assert (verdict.lost, verdict.lost_though_run, verdict.stuck) == (2, 1, 1)
    assert verdict.to_end_s == {"p50": 2.5, "p95": 2.5, "max": 2.5}


def test_a_refused_second_end_counts_as_run_twice_but_not_as_duplicate_terminal() -> None:
    log = log_of(one="succeeded", two="succeeded", three="succeeded")
    verdict = judge(log, Evidence(ends={"one": 1, "two": 2, "three": 2}, recorded={"one": 1, "two": 2}, kept=()))
    assert (verdict.ran_twice, verdict.duplicate_terminal) == (2, 1)


def test_a_job_that_nobody_accepted_is_not_counted() -> None:
    verdict = judge(ClientLog(refused=3), Evidence(ends={"stranger": 2}, recorded={"stranger": 2}, kept={"stranger"}))
    assert (verdict.refused, verdict.accepted, verdict.stuck, verdict.ran_twice) == (3, 0, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_schedule_breaks_everything_in_time_and_is_the_same_for_a_seed(seed: int) -> None:
    strikes = schedule(seed, 75.0)
    assert strikes == schedule(seed, 75.0)
    assert {strike.kind for strike in strikes} == set(Kind)
    assert [strike.at_s for strike in strikes] == sorted(strike.at_s for strike in strikes)
    assert strikes[-1].at_s + STOP_S <= 75.0


def row(**changes: object) -> dict[str, object]:
    return {"struck": {"kill_worker": 2}, "succeeded": 9, "lost": 0, "stuck": 0, "duplicate_terminal": 0, **changes}


@pytest.mark.parametrize("key", ["lost", "stuck", "duplicate_terminal"])
def test_the_run_fails_for_headrace_and_not_for_celery(key: str) -> None:
    assert broken({"headrace": row(), "celery": row(**{key: 4})}, {}) == []
    assert broken({"headrace": row(**{key: 1}), "celery": row()}, {}) == [f"Headrace: 1 {key}"]


def test_the_run_fails_if_nothing_was_killed_or_somebody_could_not_run() -> None:
    assert broken({"headrace": row(struck={"wipe_redis": 1})}, {}) == ["nothing was killed under headrace"]
    assert broken({"headrace": row()}, {"celery": "no pip"}) == ["celery could not run: no pip"]
