"""Threads beside the engine: queues of adapters that come and go, the watchdog, and claims without a message."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer.tasks import Tasks
from structlog.testing import capture_logs

from headrace.store.errors import ModelLoadError, Unavailable
from headrace.store.scheduling.dispatch_queries import Claimable
from headrace.workers.celery import adapter_queues, postgres_poller
from headrace.workers.celery.adapter_queues import AGAIN_S, AdapterQueues
from headrace.workers.celery.consumer import admission_step, follow
from headrace.workers.celery.fast_lane import num_spare
from headrace.workers.celery.postgres_poller import BUSY_S, LOOK_S, PostgresPoller
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt
from tests.processes import wait_for
from tests.workers.engine_stub import EngineStub
from tests.workers.runs.test_outcome import CLAIM


def adapter(name: str, number: int = 1) -> Any:
    return SimpleNamespace(model=name, version=number)


class Registry:
    """The adapters of a version; some have no files here."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.error: Exception | None = None
        self.missing: set[str] = set()
        self.checked: list[str] = []

    def find(self) -> list[Any]:
        if self.error is not None:
            raise self.error
        return self.found

    def check(self, version: Any) -> None:
        self.checked.append(version.model)
        if version.model in self.missing:
            raise ModelLoadError("no such folder")


def test_adapters_are_served_while_their_files_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_queues, "POLL_S", 0.0)
    now, registry, turns = [100.0], Registry(), threading.Semaphore(0)
    registry.found, registry.missing = [adapter("a"), adapter("lost", 3)], {"lost"}
    changes: list[tuple[str, ...]] = []

    def find() -> list[Any]:
        turns.release()
        return registry.find()

    queues = AdapterQueues(find, registry.check, clock=lambda: now[0])
    queues.attach(lambda: changes.append(queues.names()))

    def look_twice() -> None:
        while turns.acquire(blocking=False):
            pass
        for _ in range(2):
            assert turns.acquire(timeout=60)

    with capture_logs() as logs:
        queues.start()
        try:
            assert (queues.names(), changes) == (("a@1",), [("a@1",)])
            look_twice()
            assert registry.checked == ["a", "lost"], "one that is served or was refused is not checked again"
            registry.missing.clear()
            now[0] += AGAIN_S
            wait_for(lambda: queues.names() == ("a@1", "lost@3"), "its files came")
            registry.error = Unavailable("Postgres is away")
            look_twice()
            registry.error = KeyError("secret")
            look_twice()
            assert queues.names() == ("a@1", "lost@3"), "they stay while the registry is away"
            registry.error, registry.found = None, [adapter("lost", 3)]
            wait_for(lambda: changes[-1] == ("lost@3",), "one was removed")
            assert queues.names() == ("lost@3",)
        finally:
            queues.stop()
    assert changes == [("a@1",), ("a@1", "lost@3"), ("lost@3",)]
    refused = [line for line in logs if line["event"] == "adapter_refused"]
    assert [(line["adapter"], line["reason"]) for line in refused] == [("lost@3", "no such folder")]
    failed = [line for line in logs if line["event"] == "periodic_failed"]
    assert [(line.get("reason"), type(line.get("exc_info"))) for line in failed] == [
        ("Postgres is away", type(None)),
        (None, KeyError),
    ]


def test_a_consumer_follows_the_queues_of_adapters() -> None:
    told: list[tuple[str, str]] = []
    consumer = SimpleNamespace(
        app=SimpleNamespace(),
        add_task_queue=lambda name: told.append(("add", name)),
        cancel_task_queue=lambda name: told.append(("cancel", name)),
    )
    for names in (("a@1", "b@1"), ("b@1",), ()):
        told.clear()
        served: Any = SimpleNamespace(names=lambda names=names: names)
        follow(consumer, served)
        added = [("add", name) for name in names]
        gone = {("a@1", "b@1"): [], ("b@1",): [("cancel", "a@1")], (): [("cancel", "b@1")]}[names]
        assert sorted(told) == sorted(added + gone)


def test_celery_asks_for_room_before_each_message_and_serves_the_adapters_of_the_moment() -> None:
    admission = EngineAdmission(EngineStub(), max_jobs=1, max_slots=1)
    queues: Any = SimpleNamespace(names=lambda: ("a@1",), attach=lambda on_change: changes.append(on_change))
    changes: list[Any] = []
    called: list[Any] = []
    told: list[str] = []
    answers = [True, False]
    qos = SimpleNamespace(can_consume=lambda: answers.pop(0))
    celery_consumer: Any = SimpleNamespace(
        app=SimpleNamespace(conf=SimpleNamespace(event_exchange="celeryev")),
        hub=SimpleNamespace(call_soon=lambda *call: called.append(call)),
        task_consumer=SimpleNamespace(channel=SimpleNamespace(qos=qos, get_table=lambda _exchange: [])),
        add_task_queue=told.append,
    )
    reported: Any = SimpleNamespace(attach=lambda _send: None)
    step = admission_step(admission, queues, reported)
    assert step.requires == (Tasks,), "Celery's own consumer is there before"
    step(SimpleNamespace()).start(celery_consumer)
    assert told == ["a@1"]
    assert [qos.can_consume(), qos.can_consume()] == [True, False]
    ticket = admission.take()
    assert (qos.can_consume(), answers) == (False, []), "without room kombu is not asked"
    admission.give_back(ticket)
    assert len(called) == 1, "new room wakes the event loop"
    (on_change,) = changes
    on_change()
    assert called[1] == (follow, celery_consumer, queues)


@pytest.mark.parametrize(("slots", "spare"), [(1, 0), (3, 0), (4, 1), (32, 8)])
def test_a_quarter_of_the_slots_is_for_the_fast_lane(slots: int, spare: int) -> None:
    assert num_spare(slots) == spare


class Claims:
    """The claims of a worker, as the poller asks for them."""

    def __init__(self) -> None:
        self.found = Claimable(suspects=False, others=False)
        self.suspects: list[Attempt] = []
        self.error: Exception | None = None
        self.told: list[Any] = []
        self.closer: Any = None

    def give_back_lost(self) -> None:
        self.told.append("lost")

    def claimable(self) -> Claimable:
        self.told.append("look")
        if self.error is not None:
            raise self.error
        return self.found

    def claim_waiting(self, most: int) -> list[Attempt]:
        self.told.append(("waiting", most))
        return []

    def claim_suspect(self) -> Attempt | None:
        return self.suspects.pop(0) if self.suspects else None

    @contextmanager
    def closing(self, *, heed_load: bool) -> Iterator[Any]:
        self.told.append(("closing", heed_load))
        yield self.closer


class Poll:
    """A poller that a test turns by hand."""

    def __init__(self, *, room: int = 3, patience_s: float = 0.0) -> None:
        self.now = 100.0
        self.engine = EngineStub()
        self.claims = Claims()
        self.ran: list[str] = []
        self.admission = EngineAdmission(self.engine, max_jobs=room, max_slots=room)
        with self.admission.working_on(ticket := self.admission.take()):
            self.admission.entered(1, 1)
        self.admission.give_back(ticket)
        given: Any = self.claims
        runner: Any = SimpleNamespace(run_claimed=lambda attempt: self.ran.append(attempt.job_id))
        self.poller = PostgresPoller(
            given,
            self.admission,
            runner,
            hand_on=lambda: None,
            after_s=3.0,
            patience_s=patience_s,
            clock=lambda: self.now,
        )

    def turn(self) -> float:
        self.claims.told.clear()
        return self.poller.turn()


def test_jobs_are_claimed_without_a_message_only_after_a_silence() -> None:
    one = Poll()
    one.claims.found = Claimable(suspects=False, others=True)
    assert (one.turn(), one.claims.told) == (LOOK_S, ["lost", "look"])
    one.now += 2.9
    assert one.turn() == LOOK_S
    one.now += 0.1
    assert (one.turn(), one.claims.told) == (BUSY_S, ["lost", "look", ("waiting", 3)])
    assert one.admission.num_taken == 0, "places without a job are given back"
    one.claims.found = Claimable(suspects=False, others=False)
    assert (one.turn(), one.claims.told) == (LOOK_S, ["lost", "look"])
    tickets = [one.admission.take() for _ in range(3)]
    one.claims.found = Claimable(suspects=False, others=True)
    assert one.turn() == LOOK_S, "messages came"
    for ticket in tickets:
        one.admission.give_back(ticket)
    one.admission.close()
    assert (one.turn(), one.claims.told) == (BUSY_S, ["lost"])


def test_suspects_run_while_the_engine_takes_requests() -> None:
    one = Poll()
    one.claims.found = Claimable(suspects=True, others=False)
    attempt = Attempt(CLAIM, 100.0, None, 100.0)
    one.claims.suspects = [attempt, attempt]
    one.engine.why_not = "its server is away"
    one.turn()
    assert one.ran == []
    one.engine.why_not = None
    one.turn()
    assert (one.ran, len(one.claims.suspects), one.admission.num_taken) == (["job_1"], 1, 0), "its time is over"
    busy = one.admission.take()
    for heed_load in (True, True, True, False):
        one.turn()
        assert one.claims.told == ["lost", "look", ("closing", heed_load)]
    one.admission.give_back(busy)
    one.turn()
    assert one.ran == ["job_1", "job_1"]


@pytest.mark.parametrize("is_needed", [True, False])
def test_a_worker_that_makes_a_gap_runs_its_suspects_if_no_other_has_run_them(
    is_needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_poller, "LOOK_S", 0.0)
    one = Poll(patience_s=0.01)
    busy = one.admission.take()
    asked: list[bool] = []

    def others_end() -> bool:
        asked.append(one.admission.is_reserved)
        one.admission.give_back(busy)
        return is_needed

    one.claims.found = Claimable(suspects=True, others=False)
    one.claims.suspects = [Attempt(CLAIM, 100.0, None, 100.0)] * 2
    one.claims.closer = SimpleNamespace(is_needed=others_end)
    one.turn()
    assert (asked, one.admission.is_reserved) == ([True], False), "nothing else is admitted meanwhile"
    assert one.ran == (["job_1"] * 2 if is_needed else []), "all of them in one gap, while its time is not over"
