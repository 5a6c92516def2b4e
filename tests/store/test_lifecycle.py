"""The life of jobs against a plain model of it: whatever is done in whatever order, both agree after every step.

And the same operations racing each other: whoever wins, a job ends once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Barrier

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from store.claims import Finish, Release, claim, finish, release, renew
from store.db import Database
from store.errors import Conflict
from store.jobs import Accepted, accept, get, request_cancel
from store.ordering import forget_announcements, take_waiting
from store.states import JobState
from store.sweeps import expire_overdue, sweep_leases
from store.terminal import MAX_CRASHES
from store.webhook_endpoints import create_endpoint
from tests.store.making import QUEUE, MakeJob, Query

OWNERS = ("w1", "w2")
ENDS = st.sampled_from([state for state in JobState if state.is_terminal])


@dataclass
class Expected:
    """What the model knows of one job."""

    max_attempts: int
    is_overdue: bool
    is_announced: bool
    state: JobState = JobState.QUEUED
    epoch: int = 0
    attempt: int = 0
    crashes: int = 0
    is_suspect: bool = False
    owner: str | None = None
    is_lease_over: bool = False
    is_cancel_wanted: bool = False

    def leave(self, state: JobState) -> None:
        """Stop running: back to the queue, or to an end."""
        self.state, self.owner, self.is_lease_over = state, None, False

    def crash(self) -> None:
        """Lose the worker: the job may be why."""
        self.crashes, self.is_suspect = self.crashes + 1, True
        self.give_up_or_queue(is_exhausted=self.attempt >= self.max_attempts or self.crashes >= MAX_CRASHES)

    def give_up_or_queue(self, *, is_exhausted: bool) -> None:
        if self.is_cancel_wanted:
            self.leave(JobState.CANCELLED)
        elif is_exhausted:
            self.leave(JobState.FAILED)
        else:
            self.leave(JobState.QUEUED)
        self.is_announced = False


class Lifecycle(RuleBasedStateMachine):
    """Rules do one thing to the database and to the model; jobs are named by their ids, epochs may be stale."""

    jobs: Bundle[str] = Bundle("jobs")

    def __init__(self, db: Database, make_job: MakeJob, query: Query) -> None:
        super().__init__()
        self.db, self.make_job, self.query = db, make_job, query
        self.model: dict[str, Expected] = {}
        query("DELETE FROM jobs")

    @initialize(target=jobs)
    def begin(self) -> str:
        return self.accept_jobs([(2, False)], announce=True)[0]

    @rule(
        target=jobs,
        wanted=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=3),
        announce=st.booleans(),
    )
    def accept(self, wanted: list[tuple[int, bool]], announce: bool) -> object:
        return multiple(*self.accept_jobs(wanted, announce=announce))

    def accept_jobs(self, wanted: list[tuple[int, bool]], *, announce: bool) -> list[str]:
        new = [
            self.make_job(max_attempts=attempts, deadline_s=-1000.0 if overdue else 3600.0, announce=announce)
            for attempts, overdue in wanted
        ]
        queued = [job for job in self.model.values() if job.state is JobState.QUEUED and not job.is_suspect]
        granted = announce and all(job.is_announced for job in queued)
        assert accept(self.db, new) == [Accepted(job.id, replayed=False, announced=granted) for job in new]
        for job in new:
            self.model[job.id] = Expected(job.max_attempts, job.deadline_s < 0, granted)
        return [job.id for job in new]

    @rule(ids=st.lists(jobs, max_size=4), owner=st.sampled_from(OWNERS), dies=st.booleans(), suspects=st.booleans())
    def claim(self, ids: list[str], owner: str, dies: bool, suspects: bool) -> None:
        expected = set()
        for job_id in set(ids):
            job = self.model[job_id]
            if job.state is JobState.QUEUED and not job.is_overdue and job.is_suspect == suspects:
                expected.add(job_id)
                job.state, job.owner, job.is_lease_over = JobState.RUNNING, owner, dies
                job.epoch, job.attempt = job.epoch + 1, job.attempt + 1
        claims = claim(self.db, owner, QUEUE, ids, 0 if dies else 600, suspects=suspects)
        assert set(claims) == expected
        for job_id, claimed in claims.items():
            assert (claimed.epoch, claimed.attempt) == (self.model[job_id].epoch, self.model[job_id].attempt)

    @rule(ids=st.lists(jobs, max_size=4), owner=st.sampled_from(OWNERS), stale_by=st.sampled_from([0, 0, 0, 1]))
    def renew(self, ids: list[str], owner: str, stale_by: int) -> None:
        held = {job_id for job_id in ids if self.holds(job_id, stale_by) and self.model[job_id].owner == owner}
        renewal = renew(self.db, owner, self.epochs(ids, stale_by), 600)
        assert renewal.held == held
        assert renewal.cancelled == {job_id for job_id in held if self.model[job_id].is_cancel_wanted}
        for job_id in held:
            self.model[job_id].is_lease_over = False

    @rule(ids=st.lists(jobs, max_size=4), state=ENDS, stale_by=st.sampled_from([0, 0, 0, 1]))
    def finish(self, ids: list[str], state: JobState, stale_by: int) -> None:
        ours = {job_id for job_id in ids if self.holds(job_id, stale_by)}
        finishes = [
            Finish(job_id, epoch, state, {"text": job_id}, None, None, (job_id,))
            for job_id, epoch in self.epochs(ids, stale_by).items()
        ]
        assert finish(self.db, finishes) == ours
        for job_id in ours:
            self.model[job_id].leave(state)

    @rule(ids=st.lists(jobs, max_size=4), charge=st.booleans(), stale_by=st.sampled_from([0, 0, 0, 1]))
    def release(self, ids: list[str], charge: bool, stale_by: int) -> None:
        ours = {job_id for job_id in ids if self.holds(job_id, stale_by)}
        given = [Release(job_id, epoch, charge=charge) for job_id, epoch in self.epochs(ids, stale_by).items()]
        assert release(self.db, given) == ours
        for job_id in ours:
            job = self.model[job_id]
            job.give_up_or_queue(is_exhausted=charge and job.attempt >= job.max_attempts)
            job.attempt -= not charge

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.model[job_id]
        if job.state.is_terminal:
            with pytest.raises(Conflict):
                request_cancel(self.db, self.make_job().tenant_id, job_id)
            return
        job.is_cancel_wanted = True
        if job.state is JobState.QUEUED:
            job.leave(JobState.CANCELLED)
        assert request_cancel(self.db, self.make_job().tenant_id, job_id).state is job.state

    @rule()
    def sweep(self) -> None:
        sweep_leases(self.db)
        for job in self.model.values():
            if job.is_lease_over:
                job.crash()

    @rule()
    def expire(self) -> None:
        overdue = {i for i, job in self.model.items() if job.is_overdue and not job.state.is_terminal}
        assert set(expire_overdue(self.db)) == overdue
        for job_id in overdue:
            self.model[job_id].leave(JobState.EXPIRED)

    @rule(n=st.integers(1, 3))
    def announce(self, n: int) -> None:
        jobs = {i: job for i, job in self.model.items() if job.state is JobState.QUEUED and not job.is_announced}
        # What is overdue has the earlier deadline.
        waiting = sorted((i for i in jobs if not jobs[i].is_suspect), key=lambda i: (not jobs[i].is_overdue, i))
        assert take_waiting(self.db, QUEUE, n) == waiting[:n]
        for job_id in waiting[:n]:
            self.model[job_id].is_announced = True

    @rule()
    def wipe(self) -> None:
        forget_announcements(self.db)
        for job in self.model.values():
            if job.state is JobState.QUEUED:
                job.is_announced = False

    def holds(self, job_id: str, stale_by: int) -> bool:
        return self.model[job_id].state is JobState.RUNNING and stale_by == 0

    def epochs(self, ids: Sequence[str], stale_by: int) -> dict[str, int]:
        return {job_id: self.model[job_id].epoch - stale_by for job_id in ids}

    @invariant()
    def rows_agree_with_the_model(self) -> None:
        rows = {row["id"]: row for row in self.query("SELECT * FROM jobs")}
        assert rows.keys() == self.model.keys()
        for job_id, job in self.model.items():
            row = rows[job_id]
            for name in ("state", "epoch", "attempt", "crashes", "is_suspect", "owner"):
                assert row[name] == getattr(job, name), name
            assert (row["announced_at"] is not None) == job.is_announced or job.state is not JobState.QUEUED
            assert (row["cancel_requested_at"] is not None) == job.is_cancel_wanted
            assert (row["completed_at"] is not None) == job.state.is_terminal

    @invariant()
    def each_end_is_recorded_once(self) -> None:
        ends = {job_id: job.state for job_id, job in self.model.items() if job.state.is_terminal}
        assert {row["job_id"]: row["state"] for row in self.query("SELECT * FROM job_terminal")} == ends
        told = [(row["job_id"], row["type"]) for row in self.query("SELECT * FROM webhook_deliveries")]
        assert sorted(told) == sorted((job_id, f"job.{state}") for job_id, state in ends.items())
        events = self.query("SELECT job_id, kind FROM job_events WHERE kind = ANY(:ends)", ends=[*JobState][2:])
        assert sorted((row["job_id"], row["kind"]) for row in events) == sorted(ends.items())

    @invariant()
    def each_claim_is_an_attempt_and_only_running_ones_are_open(self) -> None:
        attempts = self.query("SELECT job_id, epoch, ended_at IS NULL AS open, outcome FROM attempts")
        assert Counter(row["job_id"] for row in attempts) == Counter({i: j.epoch for i, j in self.model.items()})
        running = {(i, j.epoch) for i, j in self.model.items() if j.state is JobState.RUNNING}
        assert {(row["job_id"], row["epoch"]) for row in attempts if row["open"]} == running
        assert all((row["outcome"] is None) == row["open"] for row in attempts)


def test_the_life_of_jobs_follows_the_model(db: Database, tenant: str, make_job: MakeJob, query: Query) -> None:
    create_endpoint(db, tenant, url="https://example.com/hook", actor="test")
    run_state_machine_as_test(
        partial(Lifecycle, db, make_job, query),
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_16_racing_threads_end_each_job_once(db: Database, tenant: str, make_job: MakeJob, query: Query) -> None:
    create_endpoint(db, tenant, url="https://example.com/hook", actor="test")
    jobs = [make_job(max_attempts=1 + n % 3, deadline_s=-1000.0 if n % 5 == 0 else 3600.0) for n in range(60)]
    accept(db, jobs)
    ids = [job.id for job in jobs]
    barrier = Barrier(16)

    def finish_some(turn: int) -> None:
        held = {
            job_id: c.epoch
            for suspects in (False, True)
            for job_id, c in claim(db, "w", QUEUE, ids[turn::3], 0, suspects=suspects).items()
        }
        finish(db, [Finish(i, e, JobState.SUCCEEDED, None, None, None, ("x",)) for i, e in held.items()])
        finish(db, [Finish(i, 1, JobState.FAILED, None, None, None, ()) for i in ids])

    def cancel_some(turn: int) -> None:
        for job_id in ids[turn::9]:
            try_to(partial(request_cancel, db, tenant, job_id))

    def sweep_some(turn: int) -> None:
        sweep_leases(db, 5 + turn)
        expire_overdue(db, 5 + turn)

    def release_some(turn: int) -> None:
        release(db, [Release(job_id, 1, charge=turn % 2 == 0) for job_id in ids[turn::2]])

    def race(thread: int) -> None:
        barrier.wait(20)
        act = (finish_some, cancel_some, sweep_some, release_some)[thread % 4]
        for turn in range(4):
            act(turn)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(race, range(16), timeout=60))
    for _ in range(4):  # what the race left over ends in good order
        sweep_leases(db)
        expire_overdue(db)
        for turn in range(3):
            finish_some(turn)
    ended = {job_id: get(db, tenant, job_id).state for job_id in ids}
    assert all(state.is_terminal for state in ended.values())
    assert len(set(ended.values())) > 1, "a race that one side always wins shows nothing"
    terminal = query("SELECT job_id, state FROM job_terminal")
    assert sorted((row["job_id"], row["state"]) for row in terminal) == sorted(ended.items())
    told = query("SELECT job_id, type FROM webhook_deliveries")
    assert sorted((row["job_id"], row["type"]) for row in told) == sorted((i, f"job.{s}") for i, s in ended.items())


def try_to(act: Callable[[], object]) -> None:
    """Do it unless the job has ended already, as a canceller cannot know."""
    try:
        act()
    except Conflict as refused:
        if refused.code != "job_not_cancellable":
            raise
