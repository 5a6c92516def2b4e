"""Calls that wait for an approval, in the store: nothing runs before the answer, and each end of the wait is one."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest

from headrace.features.flows.store.added import Added, AddedStep, AskedApproval
from headrace.features.flows.store.approvals import Verdict, decide, expire_due, list_approvals, verdict_of
from headrace.features.flows.store.stuck_flows import count_stuck_flows
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.jobs.claims import finish
from headrace.store.jobs.jobs import accept, list_steps, request_cancel, step_events
from headrace.store.jobs.sweeps import expire_overdue
from headrace.store.payloads.tool_approval import Approval, ApprovalState
from headrace.store.settings import Settings
from tests.features.flows.store.test_flows import Flow, ended
from tests.processes import StartProcess, python
from tests.roles import role_url
from tests.store.making import MakeJob, Query, new_flow

ONE = {"only": ()}
ARGUMENTS = '{"city": "Rome"}'
ACTOR = "key_1"


@pytest.fixture
def accept_flow(db: Database, make_job: MakeJob) -> Callable[..., Flow]:
    def accept_flow(**changes: Any) -> Flow:
        parent = new_flow(make_job, ONE, **changes)
        accept(db, [parent])
        return Flow(db, parent)

    return accept_flow


def call(name: str, approval: AskedApproval | None, payload: dict[str, Any]) -> AddedStep:
    return AddedStep(name, "generate", "tiny", 1, payload, 1, 1, ("only",), approval)


def parked(flow: Flow, within_s: float = 600.0) -> Approval:
    """End the first step with two calls, the first of which waits; return its approval."""
    payload = {"input": {"tool": "weather", "arguments": ARGUMENTS}}
    steps = (
        call("only:1", AskedApproval("weather", within_s), payload),
        call("only:2", None, payload),
        replace(call("only:3", None, payload), needs=("only:1", "only:2")),
    )
    (claimed,) = flow.start("only")
    finish(flow.db, [ended(claimed, added=Added(steps, answer="only:3"))])
    flow.steps = {step.step or "": step.id for step in list_steps(flow.db, flow.tenant, flow.id)}
    (found,) = list_approvals(flow.db, flow.tenant, job_id=flow.id, state=ApprovalState.PENDING)
    return found


def answer(flow: Flow, asked: Approval, approve: bool, reason: str | None = None) -> Approval:
    return decide(flow.db, flow.tenant, flow.id, asked.id, approve=approve, reason=reason, actor=ACTOR)


def kinds(flow: Flow) -> list[str]:
    events = step_events(flow.db, flow.tenant, flow.id, after=0)
    return [event.kind for event in events if event.kind.startswith("approval")]


@pytest.mark.parametrize("approve", [True, False])
def test_a_call_is_no_workers_before_the_answer(db: Database, accept_flow: Callable[..., Flow], approve: bool) -> None:
    flow, other = accept_flow(), accept_flow()
    asked = parked(flow)
    parked(other)
    assert (asked.tool, asked.step, asked.arguments, asked.decided_at) == ("weather", "only:1", ARGUMENTS, None)
    flow.run("only:2")
    assert (flow.start("only:1", "only:3"), count_stuck_flows(db)) == ([], 0)
    assert verdict_of(db, flow.tenant, asked.step_id) == Verdict(ApprovalState.PENDING, None)
    made = answer(flow, asked, approve, "as you like")
    assert (made.state, made.reason, made.decided_by) == (
        ApprovalState.APPROVED if approve else ApprovalState.REFUSED,
        "as you like",
        ACTOR,
    )
    assert verdict_of(db, flow.tenant, asked.step_id) == Verdict(made.state, "as you like")
    (decided,) = (one for one in step_events(db, flow.tenant, flow.id, after=0) if one.kind == "approval_decided")
    told = {"approval": asked.id, "step": "only:1", "job": asked.step_id, "tool": "weather", "state": made.state}
    assert (decided.epoch, decided.detail) == (0, told)
    assert (kinds(flow), kinds(other)) == (["approval_requested", "approval_decided"], ["approval_requested"])
    flow.run("only:1", "only:3")
    assert flow.states()["flow"] == "succeeded"
    assert other.start("only:1") == []


def test_the_first_answer_holds(db: Database, accept_flow: Callable[..., Flow], query: Query) -> None:
    flow = accept_flow()
    asked = parked(flow)
    meet = Barrier(2)

    def race(approve: bool) -> Approval | Conflict:
        meet.wait(60)
        try:
            return answer(flow, asked, approve)
        except Conflict as refused:
            return refused

    with ThreadPoolExecutor(2) as threads:
        found = [*threads.map(race, (True, False))]
    (held,) = [one for one in found if isinstance(one, Approval)]
    (refused,) = [one for one in found if isinstance(one, Conflict)]
    assert refused.code == "approval_decided"
    assert held.state in refused.message
    is_approved = held.state is ApprovalState.APPROVED
    assert answer(flow, asked, is_approved, "again") == held
    audited = "SELECT action, detail FROM audit_log WHERE resource = :id"
    assert query(audited, id=asked.id) == [{"action": f"tool_call.{held.state}", "detail": {"job": flow.id}}]


def test_an_approval_is_its_tenants_and_its_jobs(
    settings: Settings, db: Database, other_tenant: str, accept_flow: Callable[..., Flow]
) -> None:
    flow, other = accept_flow(), accept_flow()
    asked = parked(flow)
    with closing(Database(role_url(settings.database_url, "headrace_api"), pool_size=1, application_name="t")) as api:
        for tenant, job_id in ((other_tenant, flow.id), (flow.tenant, other.id)):
            with pytest.raises(NotFound):
                decide(api, tenant, job_id, asked.id, approve=True, reason=None, actor=ACTOR)
        assert list_approvals(api, other_tenant) == []
        assert verdict_of(api, other_tenant, asked.step_id) is None
        made = decide(api, flow.tenant, flow.id, asked.id, approve=True, reason=None, actor=ACTOR)
    assert (made.state, len(flow.start("only:1"))) == (ApprovalState.APPROVED, 1)


def test_a_time_limit_is_a_refusal_and_the_flow_goes_on(
    db: Database, accept_flow: Callable[..., Flow], query: Query
) -> None:
    late, cancelled, waiting = (accept_flow() for _ in range(3))
    asked, gone = parked(late), parked(cancelled)
    parked(waiting)
    request_cancel(db, cancelled.tenant, cancelled.id)
    due = "UPDATE tool_approvals SET expires_at = now() - interval '1 s' WHERE id IN (:one, :two)"
    query(due, one=asked.id, two=gone.id)
    with pytest.raises(Conflict, match="time limit"):
        answer(late, asked, True)
    assert (expire_due(db, 1), expire_due(db, 10), expire_due(db, 10)) == (1, 1, 0)
    assert verdict_of(db, late.tenant, asked.step_id) == Verdict(ApprovalState.EXPIRED, None)
    assert {one.id: one.state for one in list_approvals(db, late.tenant, state=ApprovalState.CANCELLED)} == {
        gone.id: ApprovalState.CANCELLED
    }
    late.run("only:1", "only:2", "only:3")
    assert [flow.states()["flow"] for flow in (late, cancelled, waiting)] == ["succeeded", "cancelled", "running"]
    assert kinds(waiting) == ["approval_requested"]


KILLED = """
import sys
from headrace.store import failpoints
from headrace.features.flows.store.approvals import decide, expire_due
from headrace.store.db.database import Database

failpoints.install("approval.before_commit=kill")
url, tenant, job_id, approval_id = sys.argv[1:]
db = Database(url, pool_size=1, application_name="tests")
if approval_id:
    decide(db, tenant, job_id, approval_id, approve=True, reason=None, actor="key_1")
else:
    expire_due(db, 10)
"""


@pytest.mark.parametrize("process", ["api", "dispatcher"])
def test_nothing_is_lost_when_who_answers_is_killed(
    settings: Settings,
    db: Database,
    accept_flow: Callable[..., Flow],
    query: Query,
    start_process: StartProcess,
    process: str,
) -> None:
    flow = accept_flow()
    asked = parked(flow)
    if process == "dispatcher":
        query("UPDATE tool_approvals SET expires_at = now() - interval '1 s' WHERE id = :id", id=asked.id)
    given = [settings.database_url, flow.tenant, flow.id, asked.id if process == "api" else ""]
    killed = start_process(python("-c", KILLED, *given), {"PATH": os.defpath})
    assert killed.wait_exit() == -signal.SIGKILL, killed.log()
    assert verdict_of(db, flow.tenant, asked.step_id) == Verdict(ApprovalState.PENDING, None)
    assert (flow.start("only:1"), kinds(flow)) == ([], ["approval_requested"])
    if process == "api":
        assert answer(flow, asked, True).state is ApprovalState.APPROVED
    else:
        assert expire_due(db, 10) == 1
    flow.run("only:1", "only:2", "only:3")
    assert flow.states()["flow"] == "succeeded"


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_what_ends_the_job_ends_the_wait(
    db: Database, accept_flow: Callable[..., Flow], query: Query, end: str
) -> None:
    flow = accept_flow()
    asked = parked(flow)
    if end == "cancel":
        request_cancel(db, flow.tenant, flow.id)
    else:
        query("UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE :id IN (id, parent_id)", id=flow.id)
        expire_overdue(db, 10, grace_s=0.0)
    assert flow.states()["flow"] == ("cancelled" if end == "cancel" else "expired")
    with pytest.raises(Conflict, match="job has ended"):
        answer(flow, asked, True)
    (found,) = list_approvals(db, flow.tenant, job_id=flow.id)
    assert (found.state, kinds(flow)) == (ApprovalState.CANCELLED, ["approval_requested"])


def test_approvals_are_listed_by_job_state_and_page(
    db: Database, accept_flow: Callable[..., Flow], query: Query
) -> None:
    flows = [accept_flow() for _ in range(3)]
    first, second, third = (parked(flow) for flow in flows)
    tenant = flows[0].tenant

    def page(**only: Any) -> list[str]:
        return [one.id for one in list_approvals(db, tenant, **only)]

    assert (page(), page(descending=False)) == ([third.id, second.id, first.id], [first.id, second.id, third.id])
    assert (page(after=third.id), page(limit=1)) == ([second.id, first.id], [third.id])
    assert page(after=first.id, descending=False) == [second.id, third.id]
    assert page(limit=1, descending=False) == [first.id]
    assert page(job_id=flows[1].id) == [second.id]
    answer(flows[0], first, approve=False)
    assert (page(state=ApprovalState.REFUSED), page(state=ApprovalState.PENDING)) == (
        [first.id],
        [third.id, second.id],
    )
    request_cancel(db, tenant, flows[1].id)
    assert page(state=ApprovalState.CANCELLED) == [second.id]
    with pytest.raises(Conflict, match="job has ended"):
        answer(flows[1], second, approve=True)
    query("UPDATE tool_approvals SET expires_at = now() - interval '1 s' WHERE id = :id", id=third.id)
    with pytest.raises(Conflict, match="time limit"):
        answer(flows[2], third, approve=True)
    with pytest.raises(NotFound, match=f"apr_x of job {flows[2].id}"):
        decide(db, tenant, flows[2].id, "apr_x", approve=True, reason=None, actor=ACTOR)
    assert expire_due(db, 10) == 1
    (found,) = list_approvals(db, tenant, state=ApprovalState.EXPIRED)
    assert (found.id, found.decided_by, found.decided_at is None) == (third.id, None, False)


def test_the_time_limits_that_are_over_for_longest_come_first(
    db: Database, accept_flow: Callable[..., Flow], query: Query
) -> None:
    asked = [parked(accept_flow()) for _ in range(3)]
    for hours, one in zip((1, 3, 2), asked, strict=True):
        query(
            "UPDATE tool_approvals SET expires_at = now() - make_interval(hours => :h) WHERE id = :id",
            h=hours,
            id=one.id,
        )
    for left in ([0, 2], [0], []):
        assert expire_due(db, 1) == 1
        waiting = query("SELECT id FROM tool_approvals WHERE state = 'pending' ORDER BY id")
        assert [row["id"] for row in waiting] == [asked[number].id for number in left]
    assert expire_due(db, 1) == 0
