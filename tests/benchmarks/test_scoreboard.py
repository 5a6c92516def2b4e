"""The judge and the schedule of the scoreboard: what it says of records whose truth is known."""

import pytest

from benchmarks.scoreboard.__main__ import broken
from benchmarks.scoreboard.callers import Event
from benchmarks.scoreboard.judge import judge
from benchmarks.scoreboard.load import Log, Order, Told, orders
from benchmarks.scoreboard.nemesis import STOP_S, Kind, schedule
from tests.chaos.oracle import answer

NUM = 12
FULL = answer("a", NUM, ends=False)


def told(name: str = "a", state: str | None = "succeeded", text: str | None = FULL, **more: object) -> Told:
    job = Told(Order(name, NUM, 0.0), accepted_at=10.0, state=state, ended_at=12.5 if state else None, text=text)
    for field, value in more.items():
        setattr(job, field, value)
    return job


def witnessed(*events: tuple[float, str], order: str = "a") -> list[dict[str, object]]:
    return [{"at": at, "kind": kind, "order": order} for at, kind in events]


ONCE = witnessed((10, "begin"), (12, "end"), (12, "effect"))


@pytest.mark.parametrize(
    ("job", "seen", "found"),
    [
        (told(), ONCE, {"accepted": 1, "succeeded": 1, "last_end_s": 2.5}),
        (told(state=None, text=None), ONCE, {"lost": 1}),
        (told(state="failed", text=None), [], {"failed": 1}),
        (told(text=FULL[:-1]), ONCE, {"wrong": 1}),
        (told(), [*ONCE, *witnessed((20, "begin"), (22, "end"))], {"computed_twice": 1, "doubled": 0}),
        (told(), [*ONCE, *witnessed((22, "effect"))], {"doubled": 1, "computed_twice": 0}),
        (told(), [*ONCE, *witnessed((1, "effect"), (1, "end"), order="b")], {"doubled": 0, "computed_twice": 0}),
    ],
)
def test_what_became_of_a_job(job: Told, seen: list[dict[str, object]], found: dict[str, float]) -> None:
    score = judge(Log([job]), seen, faults_over_at=10.0)
    assert {key: getattr(score, key) for key in found} == found


@pytest.mark.parametrize(
    ("events", "holes"),
    [
        ([("token", FULL[:5]), ("token", FULL[5:])], 0),
        ([("token", FULL[:5]), ("token", FULL[6:])], 1),
        ([("token", FULL[:5]), ("token", FULL)], 1),
        ([("token", FULL[:5]), ("restart", ""), ("token", FULL)], 0),
        ([("token", FULL[:9]), ("restart", FULL[:5]), ("token", FULL[5:])], 0),
    ],
)
def test_a_stream_is_whole_if_its_reader_holds_the_answer(events: list[tuple[str, str]], holes: int) -> None:
    job = told(reads=True, events=[Event("1", kind, text) for kind, text in events])
    score = judge(Log([job]), ONCE, 0.0)
    assert (score.streams, score.holes) == (1, holes)


@pytest.mark.parametrize(
    ("seen", "stops", "not_stopped"),
    [
        ([(11, "begin"), (13.5, "gone")], [0.5], 0),
        ([(11, "begin"), (15, "end")], [], 1),
        ([(11, "begin"), (12, "gone"), (14, "begin"), (16, "gone")], [3.0], 0),
        ([(11, "begin")], [], 1),
        ([], [0.0], 0),
        ([(11, "begin"), (12, "end")], [], 0),
    ],
)
def test_a_cancel_has_taken_effect_when_the_model_is_left(
    seen: list[tuple[float, str]], stops: list[float], not_stopped: int
) -> None:
    score = judge(Log([told(state="cancelled", text=None, cancel_at=13.0)]), witnessed(*seen), 0.0)
    assert (score.cancel_s, score.not_stopped) == (stops, not_stopped)


@pytest.mark.parametrize("seed", range(20))
def test_every_seed_breaks_everything_in_time_and_gives_the_same_round_again(seed: int) -> None:
    strikes = schedule(seed, 60.0)
    assert strikes == schedule(seed, 60.0)
    assert {strike.kind for strike in strikes} == set(Kind)
    assert [strike.at_s for strike in strikes] == sorted(strike.at_s for strike in strikes)
    assert all(strike.at_s + (STOP_S if strike.kind is Kind.STOP_WORKER else 0) <= 60.0 for strike in strikes)
    assert list(orders(seed, 6, 60)) == list(orders(seed, 6, 60))


def row(**changes: object) -> dict[str, object]:
    kept = {"struck": {"kill_worker": 2}, "lost": 0, "failed": 0, "wrong": 0, "holes": 0}
    return {**kept, "seed": 1, "cancel_s": [], "last_end_s": 1.0, **changes}


@pytest.mark.parametrize("key", ["lost", "failed", "wrong", "holes"])
def test_the_run_fails_for_headrace_alone(key: str) -> None:
    assert broken({"headrace": [row()], "celery": [row(**{key: 4})]}) == []
    assert broken({"headrace": [row(), row(**{key: 1})]}) == [f"Headrace: 1 {key}"]


def test_the_run_fails_if_nothing_was_killed() -> None:
    assert broken({"celery": [row(), row(struck={"kill_redis": 1})]}) == ["nothing was killed under celery"]
