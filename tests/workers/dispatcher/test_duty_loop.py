"""The duties of the dispatcher: which there are, when each is due, and what becomes of one that fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.store.errors import SettingsError, Unavailable
from headrace.store.jobs import sweeps
from headrace.store.keeper import Duty, DutyGroup
from headrace.store.scheduling.work_probe import PendingWork
from headrace.store.settings import Settings
from headrace.workers.dispatcher import dispatcher as module
from headrace.workers.dispatcher.dispatcher import Dispatcher, main

ADDRESSES = {"database_url": "postgresql://nobody@localhost/none", "redis_url": "redis://localhost:1/0"}


def duties_of(one: Dispatcher) -> list[Duty]:
    return [duty for group in one._duty_groups() for duty in group]


@pytest.fixture
def make() -> Iterator[Callable[..., Dispatcher]]:
    """Build dispatchers that reach no service, and close them in the end."""
    made: list[Dispatcher] = []

    def make(**changes: Any) -> Dispatcher:
        made.append(Dispatcher(Settings(**ADDRESSES, **changes)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@dataclass
class Probe:
    """Plays the probe of the work."""

    due: PendingWork | None = None

    def look(self) -> PendingWork:
        if self.due is None:
            raise Unavailable("away")
        return self.due


def test_a_duty_is_needed_only_if_a_look_found_its_work(make: Callable[..., Dispatcher]) -> None:
    one, duty_for = make(), {"jobs": "top_up", "changes": "count_queued"}
    one._probe = probe = Probe()
    for kind, name in duty_for.items():
        probe.due = PendingWork(**{**dict.fromkeys(duty_for, False), kind: True}, of_features=frozenset())
        one.look()
        needed = {duty.name for duty in duties_of(one) if duty.is_needed()}
        assert needed & {*duty_for.values()} == {name}


def test_a_look_sets_how_soon_the_next_one_comes(make: Callable[..., Dispatcher]) -> None:
    one = make()
    one._probe = probe = Probe()
    (look,) = [duty for duty in duties_of(one) if duty.name == "look"]
    periods = []
    for jobs, due in ((False, ()), (True, ()), (False, ("deliveries",))):
        probe.due = PendingWork(jobs=jobs, changes=False, of_features=frozenset(due))
        one.look()
        periods.append(look.period_s)
    assert periods == [0.25, 0.1, 0.1]
    probe.due = None
    with pytest.raises(Unavailable):
        one.look()
    assert all(duty.is_needed() for duty in duties_of(one) if duty.name in ("top_up", "count_queued"))


class Clock:
    """The monotonic clock of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_duty_is_repeated_at_once_if_there_is_more_and_later_if_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    answers: dict[str, list[Any]] = {"full": [True, False], "fails": [KeyError("secret"), None], "locked": []}
    answers["locked"] = [Unavailable("locked", code="locked"), Unavailable("locked", code="locked"), None]

    def duty(name: str, period_s: float, *, is_needed: bool = True) -> Duty:
        def run() -> bool | None:
            ran.append(name)
            found = answers[name].pop(0) if answers.get(name) else None
            if isinstance(found, Exception):
                raise found
            return found

        return Duty(name, period_s, run, lambda: is_needed)

    duties = (duty("full", 60.0), duty("fails", 0.1), duty("locked", 3.0), duty("idle", 5.0, is_needed=False))
    failures: list[str] = []
    group = DutyGroup(duties, lambda name, _took_s, num_failed: failures.extend([name] * num_failed))
    clock = Clock(monkeypatch)
    with capture_logs() as logs:
        assert group.run_due() == 1000.0, "there is more to do"
        assert (ran, [each.due_at for each in duties]) == (
            ["full", "fails", "locked"],
            [1000.0, 1001.0, 1003.0, 0.0],
        )
        assert group.run_due() == 1001.0
        clock.now = 1000.94
        group.run_due()
        assert ran[3:] == ["full"]
        clock.now = 1000.96
        group.run_due()
        assert ran[4:] == ["fails"], "what is due within 50 ms runs now"
        for clock.now in (1003.0, 1006.0):
            group.run_due()
    assert ran[5:] == ["fails", "locked", "fails", "locked"]
    told = [(line["event"], line["duty"]) for line in logs]
    assert told == [
        ("duty_failed", "fails"),
        ("duty_failed", "locked"),
        ("duty_recovered", "fails"),
        ("duty_recovered", "locked"),
    ]
    assert failures == ["fails", "locked", "locked"]


def test_a_dispatcher_that_waited_for_postgres_blames_no_worker(
    make: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    one = make()
    clock.now += 3600
    monkeypatch.setattr(module, "check_schema", lambda _db: None)
    monkeypatch.setattr(module, "check_seal", lambda _db: one.stop())
    monkeypatch.setattr(sweeps, "leader_lock", lambda _db: nullcontext())
    one.run()
    assert not one._outage_grace.blames(clock.now)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SettingsError("HEADRACE_SWEEP_S: soon"), "headrace dispatcher: HEADRACE_SWEEP_S: soon\n"),
        (ValueError("ten is no network"), "headrace dispatcher: ten is no network\n"),
    ],
)
def test_a_wrong_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def refuse() -> Settings:
        raise error

    monkeypatch.setattr(module, "load_settings", refuse)
    assert (main(), capsys.readouterr().err) == (2, told)
