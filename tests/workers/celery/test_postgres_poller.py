"""Polling Postgres: when it begins, when it ends, and suspects in isolation."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from headrace.store.db.database import Database
from headrace.store.jobs.claims import claim
from headrace.store.jobs.sweeps import sweep_leases
from headrace.store.scheduling.dispatch_queries import Claimable
from headrace.store.schema.job_states import JobState
from headrace.workers.celery.postgres_poller import LOOK_S, PostgresPoller, SilenceDetector
from headrace.workers.runs.claim_client import ClaimClient
from headrace.workers.runs.engine_admission import EngineAdmission, Ticket
from headrace.workers.runs.in_flight import Attempt
from tests.processes import WAIT_S, wait_for
from tests.workers.conftest import Bench
from tests.workers.engine_stub import EngineStub


class TestSilence:
    def silence(self) -> tuple[SilenceDetector, list[float]]:
        now = [0.0]
        return SilenceDetector(3.0, lambda: now[0]), now

    def test_it_is_long_when_jobs_waited_all_the_while(self) -> None:
        silence, now = self.silence()
        assert not silence.look(waits=True)
        now[0] = 2.9
        assert not silence.look(waits=True)
        now[0] = 3.0
        assert silence.look(waits=True)

    def test_a_gap_without_jobs_begins_it_anew(self) -> None:
        silence, now = self.silence()
        silence.look(waits=True)
        now[0] = 2.0
        silence.look(waits=False)
        now[0] = 4.0
        assert not silence.look(waits=True)

    def test_a_message_ends_it_and_nothing_else_does(self) -> None:
        silence, now = self.silence()
        silence.look(waits=True)
        now[0] = 3.0
        assert silence.look(waits=True)
        silence.count(0)
        assert silence.look(waits=False), "the next job need not wait again"
        silence.count(1)
        assert not silence.look(waits=True)


@dataclass
class Recorder:
    """An executor with jobs that run until the test ends them."""

    may_end: threading.Event = field(default_factory=threading.Event)
    running: list[Attempt] = field(default_factory=list)
    ended: list[Attempt] = field(default_factory=list)
    most: int = 0

    def run_claimed(self, attempt: Attempt) -> None:
        self.running.append(attempt)
        self.most = max(self.most, len(self.running))
        self.may_end.wait(4 * WAIT_S)
        self.running.remove(attempt)
        self.ended.append(attempt)


class Room(EngineStub):
    """An engine with ``num`` places."""

    def __init__(self, num: int) -> None:
        self.num = num

    def can_admit(self, num_prompt: int, max_tokens: int, *, count: int = 1, is_ahead: bool = False) -> bool:
        return count <= self.num


Claims = Callable[..., tuple[Recorder, EngineAdmission]]


@pytest.fixture
def direct(bench: Bench, db: Database) -> Iterator[Claims]:
    """Start direct claims for the fake model's queue with an engine that has room for so many jobs of a token."""
    stops: list[Callable[[], None]] = []

    def start(
        *,
        room: int | Room = 100,
        after_s: float = 0.2,
        patience_s: float = 0.2,
        owner: str = "direct",
        clock: Callable[[], float] = time.monotonic,
    ) -> tuple[Recorder, EngineAdmission]:
        admission = EngineAdmission(Room(room) if isinstance(room, int) else room, max_jobs=1000, max_slots=1000)
        with admission.working_on(first := admission.take()):
            admission.entered(1, 1)  # so that the need of a job is known
        admission.give_back(first)
        claim_client = ClaimClient(db, owner=owner, queue=bench.queue, lease_s=60, stopping=threading.Event())
        recorder = Recorder()
        claims = PostgresPoller(
            claim_client,
            admission,
            recorder,
            hand_on=recorder.may_end.set,
            after_s=after_s,
            patience_s=patience_s,
            clock=clock,
        )
        claims.start()
        stops.extend((claims.stop, admission.close, recorder.may_end.set))
        return recorder, admission

    yield start
    for stop in stops:
        stop()
    for thread in threading.enumerate():
        if thread.name == "direct-claims":
            thread.join(WAIT_S)


def lose(bench: Bench, job_ids: list[str]) -> None:
    """Let a worker die with the jobs in its hands."""
    claim(bench.db, "mortal", bench.queue, job_ids, 0)
    sweep_leases(bench.db)


def test_jobs_that_no_message_announces_are_claimed_as_far_as_there_is_room(bench: Bench, direct: Claims) -> None:
    ids = bench.submit(10)
    recorder, _ = direct(room=4)
    wait_for(lambda: len(recorder.running) == 4, "the engine is full")
    assert bench.states(ids) == {JobState.RUNNING: 4, JobState.QUEUED: 6}
    recorder.may_end.set()
    wait_for(lambda: len(recorder.ended) == 10, "all ran")
    assert sorted(attempt.job_id for attempt in recorder.ended) == sorted(ids)


def test_places_for_which_no_job_was_found_are_given_back(bench: Bench, direct: Claims) -> None:
    bench.submit(2)
    recorder, admission = direct(room=4)
    wait_for(lambda: len(recorder.running) == 2, "both run")
    # Before the jobs end by themselves, which gives two places back in any case.
    wait_for(lambda: admission.num_taken == 2, "unused slots are given back")


def test_while_messages_come_nothing_is_claimed_without_one(
    bench: Bench, direct: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    turn, messages_come = PostgresPoller.turn, threading.Event()

    def turn_after_a_message(poller: PostgresPoller) -> float:
        if messages_come.is_set():
            admission.give_back(admission.take())
            looks.append(True)
        return turn(poller)

    monkeypatch.setattr(PostgresPoller, "turn", turn_after_a_message)
    recorder, admission = direct(after_s=0.2)
    messages_come.set()
    ids = bench.submit(3)
    wait_for(lambda: len(looks) >= 4, "it has looked three times, each time after a message")
    assert bench.states(ids) == {JobState.QUEUED: 3}
    messages_come.clear()
    wait_for(lambda: len(recorder.running) == 3, "the messages ended")


def test_suspects_run_one_after_the_other_with_nobody_beside_them(bench: Bench, direct: Claims) -> None:
    lost = bench.submit(5)
    lose(bench, lost)
    recorder, admission = direct(after_s=60)
    wait_for(lambda: recorder.running, "the first runs")
    assert not admission.has_credit()
    recorder.may_end.set()
    wait_for(lambda: len(recorder.ended) == 5, "all ran")
    assert (recorder.most, [attempt.job_id for attempt in recorder.ended]) == (1, lost)
    assert {attempt.claim.is_suspect for attempt in recorder.ended} == {True}
    wait_for(admission.has_credit, "the door is open again")


def test_no_suspect_is_claimed_while_the_engine_takes_nothing(bench: Bench, direct: Claims) -> None:
    suspect = bench.submit()
    lose(bench, suspect)
    room = Room(0)
    recorder, _ = direct(after_s=60, room=room)
    assert not threading.Event().wait(2 * LOOK_S), "two looks"
    assert bench.states(suspect) == {JobState.QUEUED: 1}
    room.num = 1
    wait_for(lambda: recorder.running, "it runs")


def test_a_suspect_waits_until_the_others_are_done(bench: Bench, direct: Claims) -> None:
    recorder, admission = direct(after_s=60, patience_s=0.1)
    busy = admission.take()
    suspect = bench.submit()
    lose(bench, suspect)
    wait_for(lambda: not admission.has_credit(), "its patience is over: nobody is let in any more")
    assert recorder.running == []
    admission.give_back(busy)
    wait_for(lambda: recorder.running, "it runs")


def test_a_suspect_that_another_worker_took_opens_the_door_again(bench: Bench, direct: Claims) -> None:
    recorder, admission = direct(after_s=60, patience_s=0.1)
    admission.take()
    suspect = bench.submit()
    lose(bench, suspect)
    wait_for(lambda: not admission.has_credit(), "the door is shut")
    assert set(claim(bench.db, "other", bench.queue, suspect, 60, suspects=True)) == set(suspect)
    wait_for(admission.has_credit, "the door is open again")
    assert recorder.running == []


def busy_workers(bench: Bench, direct: Claims, *num_jobs: int) -> tuple[list[EngineAdmission], list[list[Ticket]]]:
    """Start a worker for each number, which runs so many jobs until their tickets are given back."""
    admissions, tickets = [], []
    for number, count in enumerate(num_jobs):
        owner = f"worker-{number}"
        assert len(claim(bench.db, owner, bench.queue, bench.submit(count), 60)) == count
        admission = direct(after_s=60, patience_s=0.3, owner=owner)[1]
        admissions.append(admission)
        tickets.append([admission.take() for _ in range(count)])
    return admissions, tickets


def test_of_busy_workers_the_least_loaded_alone_makes_a_gap(bench: Bench, direct: Claims) -> None:
    admissions, tickets = busy_workers(bench, direct, 3, 1, 2)
    (suspect,) = bench.submit()
    lose(bench, [suspect])
    wait_for(lambda: not admissions[1].has_room(), "the one with the fewest jobs takes no more")
    for _ in range(20):
        time.sleep(0.1)
        assert admissions[0].has_room()
        assert admissions[2].has_room()
    assert bench.states([suspect]) == {JobState.QUEUED: 1}
    admissions[1].give_back(tickets[1][0])
    bench.wait_state(suspect, JobState.RUNNING)


def test_another_worker_takes_over_if_the_least_loaded_does_nothing(bench: Bench, direct: Claims) -> None:
    claim(bench.db, "idle-handed", bench.queue, bench.submit(1), 60)
    (admission,), _ = busy_workers(bench, direct, 2)
    lose(bench, bench.submit())
    wait_for(lambda: not admission.has_room(), "nobody else made a gap")


def test_while_a_suspect_runs_alone_no_other_worker_shuts_its_door(bench: Bench, direct: Claims) -> None:
    first = bench.submit()
    lose(bench, first)
    assert claim(bench.db, "alone", bench.queue, first, 60, suspects=True)
    (admission,), _ = busy_workers(bench, direct, 1)
    # Only now, when the worker is busy: an idle one would run it.
    lose(bench, bench.submit())
    for _ in range(30):
        time.sleep(0.1)
        assert admission.has_room()


def test_what_still_runs_when_a_door_was_shut_for_long_is_handed_on(bench: Bench, direct: Claims) -> None:
    """After twice its patience, so that long jobs do not keep a suspect waiting."""
    now, asked = [0.0], [0]

    def clock() -> float:
        asked[0] += 1
        return now[0]

    recorder, admission = direct(after_s=0.0, patience_s=0.1, clock=clock)
    bench.submit(2)
    wait_for(lambda: len(recorder.running) == 2, "two jobs run that do not end by themselves")
    suspect = bench.submit()
    lose(bench, suspect)
    wait_for(lambda: not admission.has_credit(), "the door is shut")
    before = asked[0]
    wait_for(lambda: asked[0] > before + 1, "it has noted since when, and has looked at the time again")
    assert recorder.ended == []
    now[0] = 0.25
    wait_for(lambda: len(recorder.ended) == 3, "they were handed on, and the suspect ran")
    assert [attempt.job_id for attempt in recorder.ended[2:]] == suspect
    assert recorder.most == 2
    wait_for(admission.has_room, "the door is open again")


def test_a_worker_that_stops_claims_nothing(bench: Bench, direct: Claims) -> None:
    recorder, admission = direct(after_s=0.1)
    admission.close()
    ids = bench.submit(2)
    lose(bench, ids[:1])
    assert not threading.Event().wait(2.5)
    assert recorder.running == recorder.ended == []


def test_an_idle_worker_asks_once_a_second(direct: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_at: list[float] = []

    def claimable(_claim_client: ClaimClient) -> Claimable:
        asked_at.append(time.monotonic())
        return Claimable(suspects=False, others=False)

    monkeypatch.setattr(ClaimClient, "claimable", claimable)
    direct()
    wait_for(lambda: len(asked_at) == 4, "it looked")
    assert asked_at[3] - asked_at[0] >= 3 * LOOK_S - 0.1
