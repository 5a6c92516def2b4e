"""The loop of the dispatcher: which duties there are, when each is due, and what becomes of one that fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from structlog.testing import capture_logs

from store.errors import SettingsError, Unavailable
from store.jobs import sweeps
from store.scheduling.work_probe import PendingWork
from store.settings import Settings
from workers.dispatcher import dispatcher as module
from workers.dispatcher.dispatcher import Dispatcher, Duty, main

ADDRESSES = {"database_url": "postgresql://nobody@localhost/none", "redis_url": "redis://localhost:1/0"}


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


def test_each_duty_has_its_period_and_some_are_needed_only_if_there_is_work(make: Callable[..., Dispatcher]) -> None:
    one = make(sweep_s=5.0, audit_head_s=600, dispatcher_port=0)
    periods = {duty.name: duty.period_s for duty in one._duties}
    assert periods == {
        "check_lead": 2.0,
        "notice_wipe": 1.0,
        "look": 0.1,
        "top_up": 0.1,
        "count_queued": 0.25,
        "sweep_leases": 5.0,
        "expire_deadlines": 5.0,
        "expire_approvals": 5.0,
        "fail_rejected": 5.0,
        "answer_sharers": 5.0,
        "measure": 2.0,
        "autoscale": 2.0,
        "advance_rollouts": 2.0,
        "tell_audit_heads": 600.0,
    }
    quick = {duty.name: duty.period_s for duty in make(sweep_s=0.5)._duties}
    assert (quick["check_lead"], quick["notice_wipe"]) == (0.5, 0.5)

    def idle(found: Dispatcher, **due: bool) -> list[str]:
        nothing = dict.fromkeys(("jobs", "changes", "sharers", "deliveries"), False)
        found._due = PendingWork(**{**nothing, **due})
        return [duty.name for duty in found._duties if not duty.is_needed()]

    seldom = ["top_up", "count_queued", "answer_sharers"]
    assert idle(one) == [*seldom, "measure", "autoscale"]
    assert idle(one, jobs=True) == [*seldom[1:], "measure", "autoscale"]
    assert idle(one, changes=True) == ["top_up", "answer_sharers", "measure", "autoscale"]
    busy = make(dispatcher_port=9, autoscale=("tiny=0..1",))
    assert idle(busy, sharers=True) == seldom[:2]
    busy._counter._measured.add("tiny@1")
    assert idle(busy) == ["top_up", "answer_sharers"], "rates are to be written"


def test_a_look_sets_how_soon_the_next_one_comes_and_wakes_the_sender(
    make: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    (look,) = [duty for duty in one._duties if duty.name == "look"]
    told: list[str] = []
    one._sender = type("Sender", (), {"notify_due": lambda _self: told.append("due")})()
    periods = []
    for jobs, deliveries in ((False, False), (True, False), (False, True)):
        due = PendingWork(jobs=jobs, changes=False, sharers=False, deliveries=deliveries)
        monkeypatch.setattr(module, "probe", lambda _db, due=due: due)
        one.look()
        periods.append(look.period_s)
    assert (periods, told) == ([0.25, 0.1, 0.1], ["due"])

    def away(_db: Any) -> PendingWork:
        raise Unavailable("away")

    monkeypatch.setattr(module, "probe", away)
    with pytest.raises(Unavailable):
        one.look()
    assert all(duty.is_needed() for duty in one._duties if duty.name in ("top_up", "count_queued", "answer_sharers"))
    one._sender = None


class Clock:
    """The monotonic clock of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_duty_is_repeated_at_once_if_there_is_more_and_later_if_it_failed(
    make: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
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

    one._duties = (duty("full", 60.0), duty("fails", 0.1), duty("locked", 3.0), duty("idle", 1.0, is_needed=False))
    clock = Clock(monkeypatch)
    with capture_logs() as logs:
        assert one._run_due() == 1000.0, "there is more to do"
        assert (ran, [each.due_at for each in one._duties]) == (
            ["full", "fails", "locked"],
            [1000.0, 1001.0, 1003.0, 0.0],
        )
        assert one._run_due() == 1001.0
        clock.now = 1000.94
        one._run_due()
        assert ran[3:] == ["full"]
        clock.now = 1000.96
        one._run_due()
        assert ran[4:] == ["fails"], "what is due within 50 ms runs now"
        for clock.now in (1003.0, 1006.0):
            one._run_due()
    assert ran[5:] == ["fails", "locked", "fails", "locked"]
    told = [(line["event"], line["duty"]) for line in logs]
    assert told == [
        ("dispatcher.duty_failed", "fails"),
        ("dispatcher.duty_failed", "locked"),
        ("dispatcher.duty_recovered", "fails"),
        ("dispatcher.duty_recovered", "locked"),
    ]
    failures = [
        one.metrics.registry.get_sample_value("headrace_dispatcher_duty_failures_total", {"duty": name})
        for name in ("fails", "locked")
    ]
    assert failures == [1, 2]


def test_a_dispatcher_that_waited_for_postgres_blames_no_worker(
    make: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    one = make()
    clock.now += 3600
    monkeypatch.setattr(module, "check_schema", lambda _db: None)
    monkeypatch.setattr(module, "check_keys", lambda _db, _vault: one.stop())
    monkeypatch.setattr(sweeps, "leader_lock", lambda _db: nullcontext())
    one.run()
    assert not one._outage_grace.blames(clock.now)


def test_without_postgres_the_leader_stops_leading(make: Callable[..., Dispatcher]) -> None:
    def away() -> None:
        raise Unavailable("away", code="database_unavailable")

    one = make()
    one._duties = (Duty("away", 1.0, away), Duty("next", 1.0, away))
    with pytest.raises(Unavailable):
        one._run_due()
    assert one._duties[1].is_failing is False, "it was not run"


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
