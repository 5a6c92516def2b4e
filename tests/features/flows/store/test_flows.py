"""Flows in the store: which steps become ready, how a flow ends, and what reaches its steps."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import text

from headrace.features.flows.store.added import Added, AddedStep
from headrace.features.flows.store.growth import names_after
from headrace.features.flows.store.stuck_flows import count_stuck_flows
from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.jobs.claims import Claim, Finish, Release, claim, finish, release
from headrace.store.jobs.dead_letters import list_dead_letters
from headrace.store.jobs.erasure import purge_job
from headrace.store.jobs.jobs import (
    Accepted,
    Idempotency,
    NewJob,
    accept,
    get,
    list_jobs,
    list_steps,
    request_cancel,
    stored_deltas,
    timeline,
)
from headrace.store.jobs.sweeps import expire_overdue, sweep_leases
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import register_version
from headrace.store.scheduling.dispatch_queries import waiting_queues
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState
from headrace.store.settings import Settings
from headrace.store.tenants.quotas import usage_of
from headrace.store.tenants.usage import Price, set_price
from tests.processes import wait_for
from tests.sealing import TurnedSeal
from tests.store.making import CHAIN, JOIN, QUEUE, MakeJob, Needs, Query, new_flow

USAGE = {"input_tokens": 5, "output_tokens": 2, "queue_ms": 1.0, "first_token_ms": 2.0, "compute_ms": 3.0}

# As a worker's claim, which locks the step and not its flow.
CLAIM_ONE = """
UPDATE jobs SET state = 'running', epoch = 1, attempt = 1, owner = 'worker', started_at = now(),
    lease_expires_at = now() + interval '60 s'
WHERE id = :id
"""


class Flow:
    """A flow that was accepted, and its steps by name."""

    def __init__(self, db: Database, parent: NewJob) -> None:
        self.db = db
        self.id = parent.id
        self.tenant = parent.tenant_id
        self.steps = {step.step: step.id for step in parent.steps}

    def start(self, *names: str) -> list[Claim]:
        """Claim these steps, in this order; those that are not in a queue are absent."""
        claimed = claim(self.db, "worker", QUEUE, [self.steps[name] for name in names], 60.0)
        return [claimed[self.steps[name]] for name in names if self.steps[name] in claimed]

    def states(self) -> dict[str, str]:
        """Return the states of the steps, and of the flow."""
        found = {name: get(self.db, self.tenant, step_id).state.value for name, step_id in self.steps.items()}
        return {**found, "flow": get(self.db, self.tenant, self.id).state.value}

    def run(self, *names: str) -> None:
        for name in names:
            (claimed,) = self.start(name)
            assert finish(self.db, [ended(claimed)]) == {claimed.job_id}


def ended(claimed: Claim, state: JobState = JobState.SUCCEEDED, **changes: Any) -> Finish:
    output = {"text": f"text of {claimed.step}", "finish_reason": "stop"}
    values = {"output": output, "error": None, "usage": USAGE, "deltas": ("a ", f"{claimed.step}")} | changes
    return Finish(
        claimed.job_id, claimed.epoch, state, tenant_id=claimed.tenant_id, parent_id=claimed.parent_id, **values
    )


@pytest.fixture
def make_flow(make_job: MakeJob) -> Callable[..., NewJob]:
    """Make a job of steps with these needs, the last of which has the answer."""

    def make(needs: Needs = CHAIN, **changes: Any) -> NewJob:
        return new_flow(make_job, needs, **changes)

    return make


@pytest.fixture
def accept_flow(db: Database, make_flow: Callable[..., NewJob]) -> Callable[..., Flow]:
    def accept_flow(needs: Needs = CHAIN, **changes: Any) -> Flow:
        parent = make_flow(needs, **changes)
        (outcome,) = accept(db, [parent])
        assert isinstance(outcome, Accepted)
        return Flow(db, parent)

    return accept_flow


def test_steps_run_one_after_another_and_the_last_one_is_the_answer(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow = accept_flow()
    assert flow.start("second", "third") == []
    assert [depth.queue for depth in waiting_queues(db)] == [QUEUE]
    (claimed,) = flow.start("first")
    assert flow.states() == {"first": "running", "second": "queued", "third": "queued", "flow": "running"}
    finish(db, [ended(claimed)])
    flow.run("second", "third")
    job = get(db, tenant, flow.id)
    assert (job.state, job.output) == (JobState.SUCCEEDED, {"text": "text of third", "finish_reason": "stop"})
    assert job.usage is not None
    assert (job.usage["input_tokens"], job.usage["output_tokens"], job.usage["compute_ms"]) == (15, 6, 9.0)
    stream = stored_deltas(db, tenant, flow.id)
    assert stream is not None
    assert (stream.deltas, stream.epoch, job.epoch) == (["a ", "third"], 1, 1)
    noted = [(event.kind, event.detail.get("step")) for event in timeline(db, tenant, flow.id)]
    steps = [(kind, name) for name in CHAIN for kind in ("step_started", "step_finished")]
    assert noted == [("queued", None), *steps, ("succeeded", None)]
    assert query("SELECT count(*) AS n FROM job_terminal") == [{"n": 4}]
    billed = "SELECT task, sum(input_tokens) AS tokens FROM usage_ledger GROUP BY task ORDER BY task"
    assert [(row["task"], int(row["tokens"])) for row in query(billed)] == [("flow", 0), ("generate", 15)]


@pytest.mark.parametrize("hindrance", [None, "a worse class waits", "batch", "waiting", "paused"])
def test_a_step_that_became_ready_is_announced_as_an_accepted_job_is(
    db: Database,
    make_job: MakeJob,
    accept_flow: Callable[..., Flow],
    query: Query,
    hindrance: str | None,
) -> None:
    flow = accept_flow(service_class=ServiceClass.BATCH if hindrance == "batch" else ServiceClass.STANDARD)
    (claimed,) = flow.start("first")
    if hindrance == "waiting":
        accept(db, [make_job(announce=False)])
    if hindrance == "a worse class waits":
        accept(db, [make_job(announce=False, service_class=ServiceClass.BATCH)])
    if hindrance == "paused":
        query("INSERT INTO queue_controls (queue, paused_by) VALUES (:queue, 'tests')", queue=QUEUE)
    announced: list[str] = []
    finish(db, [ended(claimed)], lambda settled: announced.extend(step.id for step in settled.announced))
    rows = query("SELECT id FROM jobs WHERE parent_id = :id AND announced_at IS NOT NULL", id=flow.id)
    is_free = hindrance in (None, "a worse class waits")
    assert announced == [row["id"] for row in rows] == ([flow.steps["second"]] if is_free else [])


def test_the_first_steps_are_announced_with_the_acceptance(db: Database, make_flow: Callable[..., NewJob]) -> None:
    parent = make_flow(JOIN)
    left, right, both = (replace(step, announce=True) for step in parent.steps)
    (outcome,) = accept(db, [replace(parent, steps=(left, right, both))])
    assert isinstance(outcome, Accepted)
    assert outcome.hinted >= {left.id, right.id}


def test_a_flow_is_stuck_without_a_step_that_runs_or_may_run(
    db: Database, accept_flow: Callable[..., Flow], query: Query
) -> None:
    waiting, running, stuck = accept_flow(), accept_flow(), accept_flow()
    for flow in (waiting, running, stuck):
        flow.run("first")
    running.start("second")
    assert count_stuck_flows(db) == 0
    with db.begin() as connection:  # as a defect would
        connection.execute(
            text("UPDATE jobs SET queue = :unserved WHERE id = :id"),
            {"unserved": UNSERVED_QUEUE, "id": stuck.steps["second"]},
        )
    assert count_stuck_flows(db) == 1
    query(
        "INSERT INTO tool_approvals (id, tenant_id, job_id, step_id, tool, expires_at) "
        "VALUES ('apr_1', :tenant, :flow, :step, 'weather', now() + interval '1 h')",
        tenant=stuck.tenant,
        flow=stuck.id,
        step=stuck.steps["second"],
    )
    assert count_stuck_flows(db) == 0, "it waits for a person"
    query("UPDATE tool_approvals SET state = 'approved', decided_at = now(), decided_by = 'key_1'")
    assert count_stuck_flows(db) == 1
    request_cancel(db, stuck.tenant, stuck.id)
    assert count_stuck_flows(db) == 0


def test_of_parallel_steps_the_last_to_end_makes_the_join_ready(db: Database, accept_flow: Callable[..., Flow]) -> None:
    for _ in range(5):
        flow = accept_flow(JOIN)
        left, right = flow.start("left", "right")
        barrier = Barrier(2)

        def end(claimed: Claim, barrier: Barrier = barrier) -> set[str]:
            barrier.wait(30)
            # While the other one ends, its transaction has locked the flow, and the step is left out.
            return wait_for(lambda: finish(db, [ended(claimed)]))

        with ThreadPoolExecutor(2) as pool:
            assert [*pool.map(end, [left, right])] == [{left.job_id}, {right.job_id}]
        flow.run("both")
        assert set(flow.states().values()) == {"succeeded"}


def test_a_failure_names_its_step_and_ends_the_others(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow, other = accept_flow(JOIN), accept_flow(JOIN)
    left, right = flow.start("left", "right")
    finish(
        db, [ended(left, JobState.FAILED, output=None, error={"code": "context_length_exceeded", "message": "long"})]
    )
    # The step that still runs is asked to stop, and the flow ends with it.
    assert flow.states() == {"left": "failed", "right": "running", "both": "cancelled", "flow": "running"}
    assert get(db, tenant, right.job_id).cancel_requested_at is not None
    finish(db, [ended(right, JobState.CANCELLED)])
    job = get(db, tenant, flow.id)
    error = {"code": "context_length_exceeded", "message": "step left: long", "step": "left"}
    assert (job.state, job.error, job.output) == (JobState.FAILED, error, None)
    assert query("SELECT count(*) AS n FROM job_terminal") == [{"n": 4}]
    assert set(other.states().values()) == {"queued"}


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancel_reaches_every_step(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], *, begun: bool
) -> None:
    flow, other = accept_flow(), accept_flow()
    claimed = flow.start("first") if begun else []
    job = request_cancel(db, tenant, flow.id)
    assert job.state is (JobState.RUNNING if begun else JobState.CANCELLED)
    finish(db, [ended(one, JobState.CANCELLED) for one in claimed])
    assert set(flow.states().values()) == {"cancelled"}
    assert set(other.states().values()) == {"queued"}
    with pytest.raises(Conflict, match=f"step of {other.id}"):
        request_cancel(db, tenant, other.steps["first"])


def test_a_flow_waits_for_a_step_that_is_claimed_while_it_is_cancelled(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow = accept_flow()
    step_id = flow.steps["first"]
    with ThreadPoolExecutor(1) as pool:
        with db.begin() as connection:
            connection.execute(text(CLAIM_ONE), {"id": step_id})
            asked = pool.submit(request_cancel, db, tenant, flow.id)
            wait_for(lambda: query("SELECT FROM pg_locks WHERE NOT granted"), "the cancel waits for the claim")
        assert not asked.result().state.is_terminal
    assert flow.states()["first"] == "running"
    assert finish(db, [Finish(step_id, 1, JobState.CANCELLED, None, None, USAGE, parent_id=flow.id)]) == {step_id}
    job = get(db, tenant, flow.id)
    assert job.usage is not None
    assert (job.state, job.usage["output_tokens"]) == (JobState.CANCELLED, 2)


def test_a_deadline_reaches_every_step(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow, other = accept_flow(), accept_flow()
    flow.run("first")
    query("UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE :id IN (id, parent_id)", id=flow.id)
    assert expire_overdue(db) == [flow.id]
    assert flow.states() == {"first": "succeeded", "second": "expired", "third": "expired", "flow": "expired"}
    job = get(db, tenant, flow.id)
    assert job.usage is not None
    assert (job.usage["input_tokens"], job.usage["output_tokens"]) == (5, 2)
    ledger = query("SELECT task, state, input_tokens FROM usage_ledger ORDER BY task")
    assert [tuple(row.values()) for row in ledger] == [("flow", "expired", 0), ("generate", "succeeded", 5)]
    assert set(other.states().values()) == {"queued"}


def test_a_step_of_a_lost_worker_runs_again_until_its_attempts_are_used_up(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow = accept_flow(max_attempts=2)
    for _ in range(2):
        (claimed,) = flow.start("first")
        assert flow.states()["flow"] == "running"
        query("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=claimed.job_id)
        sweep_leases(db)
        query("UPDATE jobs SET is_suspect = false")
    job = get(db, tenant, flow.id)
    assert job.error is not None
    assert (job.state, job.error["code"], job.error["step"]) == (JobState.FAILED, "max_attempts_exceeded", "first")
    assert [letter.job_id for letter in list_dead_letters(db, tenant)] == [flow.id]
    assert flow.states()["third"] == "cancelled"


def test_a_step_that_is_given_back_leaves_its_flow_running(db: Database, accept_flow: Callable[..., Flow]) -> None:
    flow = accept_flow()
    (claimed,) = flow.start("first")
    release(db, [Release(claimed.job_id, claimed.epoch, parent_id=claimed.parent_id)])
    assert flow.states() == {"first": "queued", "second": "queued", "third": "queued", "flow": "running"}
    flow.run("first", "second", "third")
    assert flow.states()["flow"] == "succeeded"


def test_lists_have_flows_and_the_contents_of_steps_go_with_them(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow, other = accept_flow(), accept_flow()
    assert [job.id for job in list_jobs(db, tenant)] == [other.id, flow.id]
    assert [job.step for job in list_steps(db, tenant, flow.id)] == list(CHAIN)
    flow.run(*CHAIN)
    with pytest.raises(Conflict, match=f"step of {flow.id}"):
        purge_job(db, tenant, flow.steps["first"], actor="key")
    purge_job(db, tenant, flow.id, actor="key")
    emptied = query("SELECT COALESCE(parent_id, id) AS id FROM jobs WHERE payload = '{}' AND output IS NULL")
    assert [row["id"] for row in emptied] == [flow.id] * 4


def test_a_flow_counts_as_one_job_with_the_tokens_of_its_steps(
    db: Database, tenant: str, accept_flow: Callable[..., Flow]
) -> None:
    flow = accept_flow()
    used = usage_of(db, tenant)
    assert (used.jobs, used.queued_tokens) == (1, 3 * 13)
    flow.run("first")
    used = usage_of(db, tenant)
    assert (used.jobs, used.queued_tokens) == (1, 2 * 13)
    flow.run("second", "third")
    used = usage_of(db, tenant)
    assert (used.jobs, used.queued_tokens) == (0, 0)


def test_a_repeated_request_has_the_steps_of_the_first_one(
    db: Database, make_flow: Callable[..., NewJob], query: Query
) -> None:
    first, again = (make_flow(idempotency=Idempotency("POST /v1/jobs", "k", "f")) for _ in range(2))
    outcomes = [found for one in (first, again) for found in accept(db, [one])]
    assert [found.job_id for found in outcomes if isinstance(found, Accepted)] == [first.id, first.id]
    assert query("SELECT count(*) AS n FROM jobs") == [{"n": 4}]


def added(*steps: tuple[str, tuple[str, ...]], answer: str | None = None, most: int = 16) -> Added:
    """Steps to add, by name and needs."""
    made = (AddedStep(name, "generate", "tiny", 1, {"of": name}, 3, 10, needs) for name, needs in steps)
    return Added(tuple(made), answer, most)


CALLS = (("only:1", ("only",)), ("only:2", ("only",)), ("only:3", ("only:1", "only:2")))
ONE: Needs = {"only": ()}


def grown(flow: Flow, **changes: Any) -> None:
    """End the one step of a flow, which adds two calls and a new answer behind them."""
    (claimed,) = flow.start("only")
    finish(flow.db, [ended(claimed, added=added(*CALLS, answer="only:3", **changes))])
    flow.steps = {step.step or "": step.id for step in list_steps(flow.db, flow.tenant, flow.id)}


def test_a_step_adds_steps_and_the_last_of_them_is_the_answer(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flow, other = accept_flow(ONE, api_key_id="key_1", project_id="proj_1", user_id="mia"), accept_flow(ONE)
    assert (names_after("only", 2), names_after("only:2", 1)) == (("only:1", "only:2"), ("only:3",))
    grown(flow)
    assert flow.states() == {"only": "succeeded", **dict.fromkeys(("only:1", "only:2", "only:3"), "queued")} | {
        "flow": "running"
    }
    assert get(db, tenant, flow.id).streamed_as == flow.steps["only:3"]
    same = "tenant_id, api_key_id, project_id, user_id, class_rank, priority, deadline_at, max_attempts"
    added_steps = f"SELECT DISTINCT {same} FROM jobs WHERE parent_id = :id AND step <> 'only'"
    assert query(added_steps, id=flow.id) == query(f"SELECT {same} FROM jobs WHERE id = :id", id=flow.id)
    sizes = "SELECT DISTINCT input_tokens, cost_tokens FROM jobs WHERE parent_id = :id AND id <> :only"
    assert query(sizes, id=flow.id, only=flow.steps["only"]) == [{"input_tokens": 3, "cost_tokens": 10}]
    flow.run("only:1", "only:2")
    (claimed,) = flow.start("only:3")
    # Its events follow those of the old answer, which had epoch 1.
    assert (claimed.epoch, claimed.attempt, claimed.restarts_after) == (2, 1, 1)
    finish(db, [ended(claimed)])
    job = get(db, tenant, flow.id)
    assert (job.state, job.epoch, job.output) == (
        JobState.SUCCEEDED,
        2,
        {"text": "text of only:3", "finish_reason": "stop"},
    )
    assert job.usage is not None
    assert job.usage["input_tokens"] == 4 * USAGE["input_tokens"]
    assert set(other.states().values()) == {"queued"}
    assert usage_of(db, tenant).queued_tokens == 13


def test_more_steps_than_a_job_may_have_fail_it_and_none_is_added(
    db: Database, tenant: str, accept_flow: Callable[..., Flow]
) -> None:
    flow = accept_flow(ONE)
    grown(flow, most=3)
    job = get(db, tenant, flow.id)
    assert job.error is not None
    assert (job.error["code"], job.error["step"], list(flow.steps)) == ("too_many_steps", "only", ["only"])
    filled, other = accept_flow(ONE), accept_flow(JOIN)
    grown(filled, most=4)
    assert (filled.states()["flow"], other.states()["flow"]) == ("running", "queued"), "its own steps are counted"


def test_of_steps_that_end_together_the_second_sees_what_the_first_has_added(
    db: Database, tenant: str, accept_flow: Callable[..., Flow]
) -> None:
    full, twice = accept_flow(JOIN), accept_flow(JOIN)
    for flow, names, most in ((full, ("left:1", "right:1"), 4), (twice, ("same:1", "same:1"), 16)):
        ends = [
            ended(claimed, added=added((name, (claimed.step or "",)), most=most))
            for claimed, name in zip(flow.start("left", "right"), names, strict=True)
        ]
        finish(db, ends)
        job = get(db, tenant, flow.id)
        assert job.error is not None
        assert job.error["code"] == ("too_many_steps" if flow is full else "internal_error")
        assert len(list_steps(db, tenant, flow.id)) == 4


def test_an_old_attempt_and_a_cancelled_flow_add_nothing(
    db: Database, tenant: str, accept_flow: Callable[..., Flow]
) -> None:
    flow, cancelled = accept_flow(ONE), accept_flow(ONE)
    (claimed,), (stopping,) = flow.start("only"), cancelled.start("only")
    request_cancel(db, tenant, cancelled.id)
    late = ended(replace(claimed, epoch=7), added=added(*CALLS))
    assert finish(db, [late, ended(stopping, added=added(*CALLS))]) == {stopping.job_id}
    assert [step.step for one in (flow, cancelled) for step in list_steps(db, tenant, one.id)] == ["only", "only"]
    assert flow.states() == {"only": "running", "flow": "running"}
    assert cancelled.states() == {"only": "cancelled", "flow": "cancelled"}, "a call alone is no answer"


def test_the_contents_of_given_and_added_steps_are_sealed(
    settings: Settings, make_flow: Callable[..., NewJob], query: Query
) -> None:
    vault = TurnedSeal("k")
    with closing(Database(settings.database_url, pool_size=1, application_name="tests", seal=vault)) as sealing:
        parent = make_flow(ONE)
        accept(sealing, [parent])
        flow = Flow(sealing, parent)
        grown(flow)
        flow.run("only:1", "only:2", "only:3")
        assert get(sealing, flow.tenant, flow.id).output == {"text": "text of only:3", "finish_reason": "stop"}
        assert get(sealing, flow.tenant, flow.steps["only:1"]).payload == {"of": "only:1"}
    stored = [row["contents"] for row in query("SELECT concat(payload, output, error) AS contents FROM jobs")]
    assert (len(stored), [one for one in stored if "text" in one or "only" in one]) == (5, [])


def test_a_flow_costs_what_its_steps_cost_and_only_its_own_end_is_an_event(
    db: Database, tenant: str, accept_flow: Callable[..., Flow], query: Query
) -> None:
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=64,
        files={},
        actor="tests",
    )
    set_price(db, "tiny", 1, Price(Decimal(10**6), Decimal(10**6), Decimal(10**6)), actor="tests")
    flow = accept_flow(webhook={"url": "https://example.com/hook"})
    flow.run(*CHAIN)
    usage = get(db, tenant, flow.id).usage
    assert usage is not None
    assert usage["cost"] == 3 * (USAGE["input_tokens"] + USAGE["output_tokens"])
    ledger = query("SELECT task, sum(cost) AS cost FROM usage_ledger GROUP BY task ORDER BY task")
    assert [(row["task"], row["cost"]) for row in ledger] == [("flow", None), ("generate", Decimal(21))]
    assert query("SELECT type, job_id FROM webhook_deliveries") == [{"type": "job.succeeded", "job_id": flow.id}]
