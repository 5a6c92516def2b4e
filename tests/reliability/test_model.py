"""The whole system as a state machine: a broker that loses and repeats, workers that die and freeze, a clock that runs.

The same rules run twice: on the model alone, thousands of steps in seconds, and on the model beside the real
statements, which must agree after every step. What must hold is checked after each, and once faults cease every job
must end. Three broken models show that the machine would notice.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headrace.store.db.database import Database
from headrace.store.jobs.terminal import MAX_CRASHES
from headrace.store.schema.job_states import JobState
from tests.reliability.conftest import Report
from tests.reliability.model import GRACE_S, STALE_S, GivenBack, Held, Model, Row, Store
from tests.reliability.model_walks import see_everything
from tests.reliability.statements import Statements, Twins
from tests.store.making import MakeJob

PROBATION = 2
"""Steps that a suspect has to survive alone before it may have company again."""

NUM_WORKERS = 3
SLACK_S = 60
ROUNDS_TO_END = 60

WORKERS = st.integers(0, NUM_WORKERS - 1)
OUTCOMES = st.sampled_from([JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED])
NEW_JOBS = st.lists(
    st.tuples(
        st.integers(1, 4), st.sampled_from([777, 50_000, 50_000]), st.sampled_from([False, False, False, False, True])
    ),
    min_size=1,
    max_size=4,
)


@dataclass
class Worker:
    """One process: its name in this life, what it believes to hold, and whether it stands still."""

    name: str
    held: dict[str, Held] = field(default_factory=dict)
    is_paused: bool = False

    @property
    def is_alone(self) -> bool:
        """True while it runs a suspect, and nothing beside it."""
        return any(one.is_suspect for one in self.held.values())


class System(RuleBasedStateMachine):
    """Rules are what may happen; nothing is assumed of their order."""

    def __init__(self, store: Store, seen: Counter[str]) -> None:
        super().__init__()
        self.store = store
        self.broker: list[str] = []
        self.is_wiped = False
        self.numbers = count(1)
        self.workers = [Worker(self.new_name()) for _ in range(NUM_WORKERS)]
        self.poison: set[str] = set()
        self.killed_by_poison: set[str] = set()
        self.hits_of_poison: dict[str, int] = {}
        self.owners: dict[tuple[str, int], str] = {}
        self.ends: dict[str, tuple[JobState, int, str | None]] = {}
        self.seen = seen

    def new_name(self) -> str:
        return f"w{next(self.numbers)}"

    @property
    def rows(self) -> dict[str, Row]:
        return self.store.rows()

    def awake(self, number: int) -> Worker | None:
        worker = self.workers[number]
        return None if worker.is_paused else worker

    def busy(self, number: int) -> Worker | None:
        """One of the workers that are awake and believe to hold something."""
        found = [worker for worker in self.workers if worker.held and not worker.is_paused]
        return found[number % len(found)] if found else None

    def hold(self, worker: Worker, claimed: list[Held]) -> None:
        for one in claimed:
            assert self.owners.setdefault((one.job_id, one.epoch), worker.name) == worker.name, "two owners, one epoch"
            worker.held[one.job_id] = one

    def die(self, number: int) -> None:
        self.workers[number] = Worker(self.new_name())

    # Clients.

    @initialize(new=NEW_JOBS)
    def begin(self, new: list[tuple[int, int, bool]]) -> None:
        self.submit(new, announce=True, is_published=True)

    @precondition(lambda self: len(self.rows) < 12)
    @rule(new=NEW_JOBS, announce=st.booleans(), is_published=st.booleans())
    def submit(self, new: list[tuple[int, int, bool]], announce: bool, is_published: bool) -> None:
        """An API accepts jobs, and may die before it rings the bell."""
        jobs = {f"job_{next(self.numbers):04d}": one for one in new}
        self.poison |= {job_id for job_id, (_, _, is_poison) in jobs.items() if is_poison}
        wanted = {job_id: (attempts, deadline_s) for job_id, (attempts, deadline_s, _) in jobs.items()}
        if self.store.accept(wanted, announce=announce) and is_published:
            self.broker += jobs

    @rule(which=st.integers(0, 11))
    def cancel(self, which: int) -> None:
        job_id = sorted(self.rows)[which % len(self.rows)]
        had_ended = self.rows[job_id].state.is_terminal
        assert self.store.cancel(job_id) != had_ended

    # The broker.

    @precondition(lambda self: self.broker)
    @rule(number=WORKERS, which=st.integers(0, 20), stays=st.sampled_from([False, False, True]))
    def deliver(self, number: int, which: int, stays: bool) -> None:
        """A worker with room takes any hint, early or late; ``stays``: it is delivered again."""
        worker = self.awake(number)
        if worker is None or worker.is_alone:
            return
        job_id = self.broker[which % len(self.broker)]
        if not stays:
            self.broker.remove(job_id)
        self.hold(worker, self.store.claim(worker.name, [job_id], suspects=False))

    @precondition(lambda self: self.broker)
    @rule(which=st.integers(0, 20), is_wiped=st.booleans())
    def lose_hints(self, which: int, is_wiped: bool) -> None:
        """One hint is lost on its way, or Redis is emptied."""
        self.is_wiped |= is_wiped
        if is_wiped:
            self.broker.clear()
        else:
            self.broker.pop(which % len(self.broker))

    # Workers.

    @rule(number=WORKERS)
    def claim_suspect(self, number: int) -> None:
        """A worker with nothing to do takes a suspect straight from the database, to run it alone."""
        worker = self.awake(number)
        if worker is not None and not worker.held:
            found = self.store.candidates(1, suspects=True, older_than_s=0)
            self.hold(worker, self.store.claim(worker.name, sorted(found), suspects=True))

    @rule(number=WORKERS, n=st.integers(1, 2))
    def claim_directly(self, number: int, n: int) -> None:
        """Without hints from Redis, a worker polls for old jobs."""
        worker = self.awake(number)
        if worker is not None and not worker.is_alone:
            found = self.store.candidates(n, suspects=False, older_than_s=STALE_S)
            self.hold(worker, self.store.claim(worker.name, sorted(found), suspects=False))

    @rule(number=WORKERS)
    def step(self, number: int) -> None:
        """The engine steps. A poison job kills the process, and everything else in it loses its worker."""
        worker = self.awake(number)
        if worker is None:
            return
        if self.poison & worker.held.keys():
            self.killed_by_poison.add(worker.name)
            self.die(number)
            return
        worker.held = {job_id: replace(one, emitted=one.emitted + 1) for job_id, one in worker.held.items()}

    @rule(number=WORKERS)
    def renew(self, number: int) -> None:
        """A worker drops jobs that it lost, and ends cancelled ones."""
        worker = self.busy(number)
        if worker is None:
            return
        held, cancelled = self.store.renew(worker.name, {i: one.epoch for i, one in worker.held.items()})
        worker.held = {job_id: one for job_id, one in worker.held.items() if job_id in held}
        for job_id in cancelled:
            assert self.store.finish(job_id, worker.held.pop(job_id).epoch, JobState.CANCELLED)

    @rule(number=WORKERS, which=st.integers(0, 5), outcome=OUTCOMES)
    def finish(self, number: int, which: int, outcome: JobState) -> None:
        """A worker writes an outcome, perhaps of an attempt that was taken from it while it slept."""
        worker = self.busy(number)
        if worker is None or not (able := sorted(worker.held.keys() - self.poison)):
            return
        one = worker.held.pop(able[which % len(able)])
        is_ours = self.is_newest(one.job_id, one.epoch)
        assert self.store.finish(one.job_id, one.epoch, outcome) == is_ours, "a stale outcome is refused"
        self.seen.update([] if is_ours else ["stale outcome refused"])

    @rule(number=WORKERS)
    def end_probation(self, number: int) -> None:
        """A suspect that survived alone for a while goes back, to go on in company."""
        worker = self.busy(number)
        for one in list(worker.held.values()) if worker is not None else ():
            if worker is not None and one.is_suspect and one.crashes == 1 and one.emitted >= PROBATION:
                self.store.release([GivenBack(one.job_id, one.epoch, cleared=True, checkpoint=one.emitted)])
                del worker.held[one.job_id]

    @rule(number=WORKERS, how=st.sampled_from(["SIGKILL", "SIGKILL", "SIGTERM", "engine"]))
    def end_process(self, number: int, how: str) -> None:
        """kill -9 reports nothing; a drain returns all jobs uncharged; an engine crash returns them as crashed."""
        worker = self.workers[number]
        if how == "SIGTERM" and not worker.is_paused:
            self.give_back([GivenBack(i, one.epoch, checkpoint=one.emitted) for i, one in worker.held.items()])
        elif how == "engine" and not worker.is_paused:
            self.give_back([GivenBack(i, one.epoch, charge=True, crashed=True) for i, one in worker.held.items()])
        self.die(number)

    def give_back(self, given: list[GivenBack]) -> None:
        ours = {one.job_id for one in given if self.is_newest(one.job_id, one.epoch)}
        assert self.store.release(given) == ours, "only what is its own is given back"

    def is_newest(self, job_id: str, epoch: int) -> bool:
        row = self.rows[job_id]
        return row.state is JobState.RUNNING and row.epoch == epoch

    @rule(number=WORKERS)
    def pause_or_continue(self, number: int) -> None:
        """SIGSTOP and SIGCONT; what happens in between it does not know."""
        self.workers[number].is_paused = not self.workers[number].is_paused

    @precondition(lambda self: self.busy(0))
    @rule(number=WORKERS, writes=st.booleans())
    def sleep_past_the_lease(self, number: int, writes: bool) -> None:
        """SIGSTOP until others have its jobs, then SIGCONT: it believes that they are its own, and may write so."""
        worker = self.busy(number)
        if worker is None:
            return
        worker.is_paused = True
        self.advance(1070)
        self.sweep()
        for other in range(NUM_WORKERS):
            self.claim_suspect(other)
        worker.is_paused = False
        for job_id, one in list(worker.held.items()) if writes else ():
            assert not self.store.finish(job_id, one.epoch, JobState.SUCCEEDED), "a stale outcome is refused"
            self.seen["stale outcome refused"] += 1
            del worker.held[job_id]

    # Time, and the dispatcher.

    @rule(seconds=st.sampled_from([350, 1070, 3100]))
    def advance(self, seconds: int) -> None:
        """Time passes, never to within a minute of a boundary: real seconds pass as well."""
        model = self.store.model if isinstance(self.store, Twins) else self.store
        assert isinstance(model, Model)
        while any(abs(model.now + seconds - boundary) < SLACK_S for boundary in _boundaries(self.rows)):
            seconds += 2 * SLACK_S
        self.store.advance(seconds)

    @rule()
    def sweep(self) -> None:
        lost_before = {job_id: (row.crashes, row.owner) for job_id, row in self.rows.items()}
        self.store.sweep()
        for job_id, (crashes, owner) in lost_before.items():
            if self.rows[job_id].crashes > crashes and owner in self.killed_by_poison:
                self.hits_of_poison[job_id] = self.hits_of_poison.get(job_id, 0) + 1

    @rule()
    def expire(self) -> None:
        self.store.expire()

    @rule(n=st.integers(1, 4), is_published=st.sampled_from([True, True, False]))
    def top_up(self, n: int, is_published: bool) -> None:
        """The dispatcher announces, and may die before it does."""
        taken = self.store.take_waiting(n)
        self.broker += sorted(taken) if is_published else ()

    @rule(n=st.integers(1, 4))
    def announce_again(self, n: int) -> None:
        self.broker += sorted(self.store.take_stale(n))

    @precondition(lambda self: self.is_wiped)
    @rule()
    def notice_wipe(self) -> None:
        self.is_wiped = False
        self.store.forget()

    # What must hold.

    @invariant()
    def a_job_ends_once_and_stays_ended(self) -> None:
        ended = {i: (row.state, row.epoch, row.code) for i, row in self.rows.items() if row.state.is_terminal}
        assert self.ends.items() <= ended.items()
        self.ends = ended

    def count_ends(self) -> None:
        """Note what came of the jobs, for the test to see that the machine has been everywhere."""
        for row in self.rows.values():
            self.seen[row.code or row.state] += 1

    @invariant()
    def a_running_job_has_one_owner_who_was_given_this_epoch(self) -> None:
        for job_id, row in self.rows.items():
            assert (row.state is JobState.RUNNING) == (row.owner is not None) == (row.lease_at is not None)
            assert row.owner is None or self.owners[job_id, row.epoch] == row.owner

    @invariant()
    def suspects_are_alone(self) -> None:
        for worker in self.workers:
            assert not worker.is_alone or len(worker.held) == 1
        together = Counter(row.owner for row in self.rows.values())
        for row in self.rows.values():
            assert not row.is_suspect or row.crashes > 0
            assert not row.is_suspect or row.owner is None or together[row.owner] == 1

    @invariant()
    def poison_is_stopped_and_takes_nobody_along(self) -> None:
        for job_id, row in self.rows.items():
            assert row.crashes <= MAX_CRASHES
            if row.crashes == MAX_CRASHES:
                assert row.state.is_terminal
            if job_id not in self.poison:
                # Once in company; once more if it had been cleared. After that it is alone to its end.
                assert self.hits_of_poison.get(job_id, 0) < MAX_CRASHES

    @invariant()
    def attempts_are_bounded(self) -> None:
        for row in self.rows.values():
            assert row.attempt <= row.max_attempts

    def teardown(self) -> None:
        """After the faults: within a few rounds of all processes, every job has ended."""
        for worker in self.workers:
            worker.is_paused = False
        for _ in range(ROUNDS_TO_END):
            if all(row.state.is_terminal for row in self.rows.values()):
                self.count_ends()
                return
            self.one_good_round()
        unfinished = {job_id: row for job_id, row in self.rows.items() if not row.state.is_terminal}
        raise AssertionError(f"these never end: {unfinished}")

    def one_good_round(self) -> None:
        if self.is_wiped:
            self.notice_wipe()
        self.sweep()
        self.expire()
        self.top_up(12, True)
        self.announce_again(12)
        for number in range(NUM_WORKERS):
            self.claim_suspect(number)
            for _ in range(len(self.broker) if number else 0):
                self.deliver(number, 0, False)
            self.step(number)
            self.renew(number)
            self.end_probation(number)
            for _ in range(len(self.workers[number].held)):
                self.finish(number, 0, JobState.SUCCEEDED)
            self.a_job_ends_once_and_stays_ended()
            self.suspects_are_alone()
            self.poison_is_stopped_and_takes_nobody_along()
        self.advance(350)


def _boundaries(rows: dict[str, Row]) -> set[int]:
    """The moments at which a statement begins to see a row differently."""
    times = {time for row in rows.values() for time in (row.deadline_at, row.deadline_at + GRACE_S, row.created_at)}
    times |= {row.created_at + STALE_S for row in rows.values()}
    times |= {row.lease_at for row in rows.values() if row.lease_at is not None}
    return times | {row.announced_at + STALE_S for row in rows.values() if row.announced_at is not None}


NO_SHRINKING = [Phase.generate]


def run(
    machine: Callable[[], System],
    *,
    num_examples: int,
    num_steps: int,
    is_full: bool = False,
    phases: Sequence[Phase] = tuple(Phase),
) -> None:
    """Run a machine: always the same steps in CI, new ones each time in a full run."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_examples * (20 if is_full else 1),
            stateful_step_count=num_steps,
            derandomize=not is_full,
            phases=phases,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


EVERYTHING = {
    "stale outcome refused",
    "succeeded",
    "failed",
    "cancelled",
    "deadline_exceeded",
    "poison",
    "max_attempts_exceeded",
}


def test_the_contract_holds_whatever_happens_in_whatever_order(is_full: bool, report: Report) -> None:
    seen: Counter[str] = Counter()
    see_everything(lambda: System(Model(), seen))
    run(lambda: System(Model(), seen), num_examples=80, num_steps=60, is_full=is_full)
    report("L0", seed=0, seen=seen)
    assert seen.keys() >= EVERYTHING


def test_the_statements_do_what_the_model_does(db: Database, make_job: MakeJob, is_full: bool, report: Report) -> None:
    seen: Counter[str] = Counter()
    see_everything(lambda: System(Twins(Statements(db, make_job)), seen))
    run(
        lambda: System(Twins(Statements(db, make_job)), seen),
        num_examples=24 if is_full else 4,
        num_steps=50,
        is_full=is_full,
        # A thousand tries on a database for a shorter story take longer than to read the long one.
        phases=NO_SHRINKING,
    )
    report("L0.statements", seed=0, seen=seen)
    assert seen.keys() >= EVERYTHING


class TakesStaleOutcomes(Model):
    """Without the epoch in the statement."""

    def is_ours(self, job_id: str, epoch: int) -> bool:
        return self.jobs[job_id].state is JobState.RUNNING


class LetsSuspectsMingle(Model):
    """Without a word to the worker that this one must run alone."""

    def claim(self, owner: str, ids: Sequence[str], *, suspects: bool) -> list[Held]:
        return [replace(one, is_suspect=False) for one in super().claim(owner, ids, suspects=suspects)]


class NeverGivesUp(Model):
    """Without the bound on crashes."""

    def judge(self, row: Row, *, charge: bool, crashed: bool) -> None:
        super().judge(row, charge=charge, crashed=False)


class ForgetsLostHints(Model):
    """Without the second announcement."""

    def take_stale(self, n: int) -> set[str]:
        return set()


@pytest.mark.parametrize("broken", [TakesStaleOutcomes, LetsSuspectsMingle, NeverGivesUp, ForgetsLostHints])
def test_a_broken_contract_would_be_noticed(broken: type[Model]) -> None:
    with pytest.raises(AssertionError):
        run(lambda: System(broken(), Counter()), num_examples=500, num_steps=60, phases=NO_SHRINKING)
