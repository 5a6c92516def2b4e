"""Flows as a state machine: whatever happens to their steps in whatever order, the tables say what an oracle says.

The oracle is one dictionary of steps for each flow. The rules accept flows, claim and end steps, also with attempts
that are over, lose workers, cancel, and let deadlines pass.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import text

from headrace.features.flows.store.decisions import Flow, FlowDecision, FlowStep, decide
from headrace.features.flows.store.stuck_flows import count_stuck_flows
from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.jobs.claims import Claim, Finish, Release, claim, finish, release
from headrace.store.jobs.jobs import accept, request_cancel
from headrace.store.jobs.sweeps import expire_overdue, sweep_leases
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState
from tests.store.making import CHAIN, JOIN, QUEUE, MakeJob, Needs, new_flow

SHAPES = (CHAIN, JOIN, {"first": (), "left": ("first",), "right": ("first",), "last": ("left", "right")})
MAX_ATTEMPTS = 2
ENDS = ("succeeded", "failed", "cancelled", "expired")
OUTCOMES = st.sampled_from([JobState.SUCCEEDED] * 2 + [JobState.FAILED, JobState.CANCELLED])
PICK = st.integers(0, 90)


@dataclass
class Step:
    """What the oracle knows of a step. ``waiting`` is queued, and not ready."""

    id: str
    needs: tuple[str, ...]
    state: str = "waiting"
    epoch: int = 0
    attempt: int = 0


@dataclass
class Expected:
    """What the oracle knows of a flow."""

    id: str
    tenant: str
    steps: dict[str, Step]
    state: str = "queued"
    is_cancelled: bool = False
    is_late: bool = False

    def settle(self) -> None:
        """Do what follows from the states of the steps."""
        steps = self.steps.values()
        if self.is_cancelled or any(one.state in ("failed", "expired", "cancelled") for one in steps):
            for one in steps:
                one.state = "cancelled" if one.state in ("waiting", "queued") else one.state
        for one in steps:
            if one.state == "waiting" and all(self.steps[name].state == "succeeded" for name in one.needs):
                one.state = "queued"
        states = {one.state for one in steps}
        if states <= {*ENDS}:
            self.state = next(one for one in ("failed", "expired", "cancelled", "succeeded") if one in states)
        elif states & {*ENDS, "running"}:
            self.state = "running"

    @property
    def must_stop(self) -> bool:
        """True if a worker is asked to stop the steps that run."""
        return self.is_cancelled or any(one.state in ("failed", "cancelled") for one in self.steps.values())


@dataclass
class Tables:
    """The statements of the store, and what they left in the tables."""

    db: Database
    make_job: MakeJob
    seen: Counter[str] = field(default_factory=Counter)

    def change(self, statement: str, **values: Any) -> None:
        with self.db.begin() as connection:
            connection.execute(text(statement), values)

    def read(self, statement: str, **values: Any) -> list[Any]:
        with self.db.begin() as connection:
            return list(connection.execute(text(statement), values))


class Flows(RuleBasedStateMachine):
    """Rules are what may happen. ``claims``: every attempt that a worker was ever given."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.db = tables.db
        self.flows: list[Expected] = []
        self.claims: list[Claim] = []
        tables.change("DELETE FROM jobs")

    def step_of(self, one: Claim) -> tuple[Expected, Step]:
        flow = next(flow for flow in self.flows if flow.id == one.parent_id)
        return flow, flow.steps[one.step or ""]

    def is_newest(self, one: Claim) -> bool:
        _, step = self.step_of(one)
        return step.state == "running" and step.epoch == one.epoch

    @initialize(shape=st.sampled_from(SHAPES))
    def begin(self, shape: Needs) -> None:
        self.accept(shape)

    @precondition(lambda self: len(self.flows) < 3)
    @rule(shape=st.sampled_from(SHAPES))
    def accept(self, shape: Needs) -> None:
        new = new_flow(self.tables.make_job, shape, max_attempts=MAX_ATTEMPTS)
        accept(self.db, [new])
        steps = {one.step or "": Step(one.id, one.needs or ()) for one in new.steps}
        self.flows.append(Expected(new.id, new.tenant_id, steps))
        self.flows[-1].settle()

    @rule(which=PICK)
    def take(self, which: int) -> None:
        """A worker claims a step: mostly one that is in a queue, else any one, which is not given to it."""
        every = [(flow, step) for flow in self.flows for step in flow.steps.values()]
        ready = [(flow, step) for flow, step in every if step.state == "queued"]
        chosen = ready if ready and which % 4 else every
        self.take_step(*chosen[which // 4 % len(chosen)])

    def take_step(self, flow: Expected, step: Step) -> None:
        found = [*claim(self.db, "worker", QUEUE, [step.id], 1000.0).values()]
        assert bool(found) == (step.state == "queued" and not flow.is_late)
        self.claims += found
        if found:
            step.state, step.epoch, step.attempt, flow.state = "running", step.epoch + 1, step.attempt + 1, "running"

    @precondition(lambda self: self.claims)
    @rule(which=st.lists(PICK, min_size=1, max_size=2), outcome=OUTCOMES)
    def end(self, which: list[int], outcome: JobState) -> None:
        """A worker writes outcomes, perhaps of attempts that are over, perhaps of two steps of one flow at once."""
        running = [*filter(self.is_newest, self.claims)]
        known = [running if running and n % 4 else self.claims for n in which]
        written = {
            one.job_id: one for one in (those[n // 4 % len(those)] for n, those in zip(which, known, strict=True))
        }
        ours = [one for one in written.values() if self.is_newest(one)]
        if outcome is JobState.CANCELLED and not all(self.step_of(one)[0].must_stop for one in ours):
            outcome = JobState.SUCCEEDED
        self.write([*written.values()], outcome)
        self.tables.seen.update(["stale outcome refused"] if len(ours) < len(written) else [])

    def write(self, written: list[Claim], outcome: JobState) -> None:
        ours = [one for one in written if self.is_newest(one)]
        assert finish(self.db, [_finish(one, outcome) for one in written]) == {one.job_id for one in ours}
        for one in ours:
            self.step_of(one)[1].state = outcome.value
        for flow, _ in map(self.step_of, ours):
            flow.settle()

    @precondition(lambda self: self.claims)
    @rule(which=PICK)
    def give_back(self, which: int) -> None:
        """A drain: the attempt is not charged."""
        one = self.claims[which % len(self.claims)]
        given = release(self.db, [Release(one.job_id, one.epoch, parent_id=one.parent_id)])
        assert bool(given) == self.is_newest(one)
        if given:
            flow, step = self.step_of(one)
            step.attempt -= 1
            step.state = "cancelled" if flow.must_stop else "queued"
            flow.settle()

    @precondition(lambda self: any(map(self.is_newest, self.claims)))
    @rule(which=PICK)
    def lose_worker(self, which: int) -> None:
        """``kill -9``, and the sweep after the lease."""
        running = [*filter(self.is_newest, self.claims)]
        one = running[which % len(running)]
        late = "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id"
        self.tables.change(late, id=one.job_id)
        assert sweep_leases(self.db).num_jobs == 1
        # A worker that has room for it alone would claim it; here every worker may.
        self.tables.change("UPDATE jobs SET is_suspect = false WHERE id = :id", id=one.job_id)
        flow, step = self.step_of(one)
        charged = "failed" if step.attempt >= MAX_ATTEMPTS else "queued"
        step.state = "cancelled" if flow.must_stop else charged
        flow.settle()

    @rule(which=st.integers(0, 90))
    def cancel(self, which: int) -> None:
        """One time in four a customer cancels."""
        if which % 4:
            return
        flow = self.flows[which // 4 % len(self.flows)]
        try:
            request_cancel(self.db, flow.tenant, flow.id)
        except Conflict:
            assert flow.state in ENDS
            return
        assert flow.state not in ENDS
        flow.is_cancelled = True
        flow.settle()

    @precondition(lambda self: any(flow.state not in ENDS for flow in self.flows))
    @rule(which=st.integers(0, 90))
    def miss_deadline(self, which: int) -> None:
        """One time in four the deadline passes; a flow with a running step is left to that step's worker."""
        flow = self.flows[which // 4 % len(self.flows)]
        if which % 4 or flow.state in ENDS:
            return
        late = "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE :id IN (id, parent_id)"
        self.tables.change(late, id=flow.id)
        flow.is_late = True
        self.expire()

    def expire(self) -> None:
        due = [flow for flow in self.flows if flow.is_late and flow.state not in ENDS]
        due = [flow for flow in due if all(one.state != "running" for one in flow.steps.values())]
        grace = timedelta(days=1)
        assert {*expire_overdue(self.db, grace_s=grace.total_seconds())} == {flow.id for flow in due}
        for flow in due:
            flow.state = "expired"
            for one in flow.steps.values():
                one.state = one.state if one.state in ENDS else "expired"

    @invariant()
    def the_tables_agree(self) -> None:
        steps = {one.id: (one.state, one.epoch, one.attempt) for flow in self.flows for one in flow.steps.values()}
        rows = self.tables.read(_ROWS, unserved=UNSERVED_QUEUE)
        assert {row.id: (row.state, row.epoch, row.attempt) for row in rows if row.parent_id} == steps
        assert {row.id: row.state for row in rows if not row.parent_id} == {flow.id: flow.state for flow in self.flows}
        ended = {row.id for row in rows if row.state in ENDS}
        assert all((row.ends, row.recorded) == (row.id in ended,) * 2 for row in rows), "each end is recorded once"
        assert all(row.noted == (row.id in ended) for row in rows if row.parent_id), "the flow notes each end once"
        assert count_stuck_flows(self.db) == 0

    def teardown(self) -> None:
        """After the faults every flow ends."""
        self.expire()
        for _ in SHAPES[-1]:
            for flow in self.flows:
                for step in flow.steps.values():
                    self.take_step(flow, step)
            self.write([*filter(self.is_newest, self.claims)], JobState.SUCCEEDED)
            self.expire()
        self.the_tables_agree()
        assert {flow.state for flow in self.flows} <= {*ENDS}
        self.tables.seen.update(flow.state for flow in self.flows)


_ROWS = """
SELECT id, parent_id, epoch, attempt, CASE WHEN queue = :unserved AND state = 'queued' AND parent_id IS NOT NULL
        THEN 'waiting' ELSE state END AS state,
    (SELECT count(*) FROM job_events WHERE job_id = jobs.id AND kind = jobs.state
        AND kind NOT IN ('queued', 'running')) AS ends,
    (SELECT count(*) FROM job_terminal WHERE job_id = jobs.id AND state = jobs.state) AS recorded,
    (SELECT count(*) FROM job_events WHERE job_id = jobs.parent_id AND kind = 'step_finished'
        AND detail ->> 'job' = jobs.id) AS noted
FROM jobs
"""


def _finish(one: Claim, outcome: JobState) -> Finish:
    error = {"code": "internal_error", "message": "broken"} if outcome is JobState.FAILED else None
    return Finish(
        one.job_id,
        one.epoch,
        outcome,
        {"text": "x"},
        error,
        None,
        ("x",),
        tenant_id=one.tenant_id,
        parent_id=one.parent_id,
    )


def run(tables: Tables, *, num_examples: int, is_full: bool = False) -> None:
    """Run the machine: always the same steps in CI, new ones each time in a full run."""
    run_machine(
        lambda: Flows(tables),
        settings=settings(
            max_examples=num_examples * (20 if is_full else 1),
            stateful_step_count=25,
            derandomize=not is_full,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def walk(tables: Tables) -> None:
    """What chance may leave out: a join, a stale outcome, and each way in which a flow ends."""
    flows = Flows(tables)
    flows.begin(JOIN)
    first = flows.flows[0]
    for _ in range(MAX_ATTEMPTS):
        flows.take_step(first, first.steps["left"])
        flows.lose_worker(0)
        flows.end([0], JobState.SUCCEEDED)
        flows.the_tables_agree()
    flows.accept(JOIN)
    second = flows.flows[1]
    for name in ("left", "right"):
        flows.take_step(second, second.steps[name])
        flows.write([flows.claims[-1]], JobState.SUCCEEDED)
        flows.the_tables_agree()
    flows.miss_deadline(4)
    flows.accept(CHAIN)
    flows.cancel(8)
    flows.the_tables_agree()
    assert [flow.state for flow in flows.flows] == ["failed", "expired", "cancelled"]
    flows.teardown()


def test_the_tables_say_what_the_oracle_says(db: Database, make_job: MakeJob, is_full: bool) -> None:
    tables = Tables(db, make_job)
    walk(tables)
    run(tables, num_examples=12, is_full=is_full)
    assert tables.seen.keys() >= {"stale outcome refused", *ENDS}


Decide = Callable[[Flow, Sequence[FlowStep]], FlowDecision]


def hasty(right: Decide) -> Decide:
    """A join is ready with the first of the steps that it needs."""

    def wrong(flow: Flow, steps: Sequence[FlowStep]) -> FlowDecision:
        found = right(flow, steps)
        done = {one.name for one in steps if one.state is JobState.SUCCEEDED}
        early = tuple(one.id for one in steps if one.is_waiting and done & {*one.needs})
        return found if found.end or found.stopped else FlowDecision(early, has_begun=found.has_begun)

    return wrong


def forgetful(right: Decide) -> Decide:
    """No step becomes ready."""
    return lambda flow, steps: FlowDecision(**{**_fields(right(flow, steps)), "ready": ()})


def _fields(found: FlowDecision) -> dict[str, Any]:
    return {name: getattr(found, name) for name in FlowDecision.__slots__}


@pytest.mark.parametrize("broken", [hasty, forgetful])
def test_a_wrong_decision_would_be_noticed(
    db: Database, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Decide], Decide]
) -> None:
    monkeypatch.setattr("headrace.features.flows.store.settling.decide", broken(decide))
    with pytest.raises(AssertionError):
        walk(Tables(db, make_job))
