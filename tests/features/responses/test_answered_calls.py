"""Answers to approvals that a job brings: each is stored once, also when two jobs are accepted together."""

from dataclasses import replace
from functools import partial

import pytest

from headrace.features.flows.store.approvals import list_approvals, verdict_of
from headrace.features.responses.answered_calls import ANSWERED, ITEM
from headrace.features.responses.new_response import NewResponse
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.db.group_commit import isolated
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.answered_calls import first_steps
from headrace.store.jobs.jobs import Accepted, NewJob, accept
from headrace.store.payloads.tool_approval import ApprovalState
from tests.refusals import Naming
from tests.sealing import TurnedSeal
from tests.store.making import MakeJob, Query, new_flow


def answering(make_job: MakeJob, *approval_ids: str, approve: bool) -> NewJob:
    """Make the job of a response that answers these approvals."""
    names = [f"call_{number}" for number in range(1, len(approval_ids) + 1)]
    answers = [{"type": ITEM, "approval_request_id": one, "approve": approve, "reason": None} for one in approval_ids]
    response = NewResponse(None, True, True, answers, {ANSWERED: [*approval_ids]})
    flow = new_flow(make_job, {**dict.fromkeys(names, ()), "answer": tuple(names)}, response=response)
    call = {"input": {"tool": "weather", "arguments": "{}"}}
    return replace(flow, steps=tuple(replace(step, payload=call) for step in flow.steps))


def test_of_two_answers_in_one_batch_the_first_is_stored(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    first = answering(make_job, "mcpr_1", "mcpr_2", approve=True)
    second = answering(make_job, "mcpr_3", "mcpr_2", approve=False)
    one, two = isolated(partial(accept, db))([first, second])
    assert isinstance(one, Accepted)
    assert isinstance(two, InvalidRequest)
    assert "mcpr_2" in two.message
    found = {approval.id: (approval.job_id, approval.state) for approval in list_approvals(db, tenant)}
    assert found == dict.fromkeys(["mcpr_1", "mcpr_2"], (first.id, ApprovalState.APPROVED))
    verdict = verdict_of(db, tenant, first.steps[0].id)
    assert verdict is not None
    assert verdict.state is ApprovalState.APPROVED
    assert query("SELECT id FROM jobs WHERE id = :id OR parent_id = :id", id=second.id) == []


def test_an_answer_is_stored_with_its_reason_and_written_down(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    db.seal = TurnedSeal("k")
    flow = answering(make_job, "mcpr_1", "mcpr_2", approve=False)
    assert isinstance(flow.response, NewResponse)
    first, second = flow.response.input
    answers = [second | {"approve": True}, {"type": "message"}, first | {"reason": "too far"}]
    flow = replace(flow, response=replace(flow.response, input=answers), api_key_id="key_1")
    assert first_steps(2) == ("call_1", "call_2")
    accept(db, [flow, make_job()])
    found = {approval.id: approval for approval in list_approvals(db, tenant)}
    said = {
        name: (one.state, one.job_id, one.step_id, one.tool, one.reason, one.decided_by) for name, one in found.items()
    }
    call_1, call_2 = (step.id for step in flow.steps[:2])
    assert said == {
        "mcpr_1": (ApprovalState.REFUSED, flow.id, call_1, "weather", "too far", "key_1"),
        "mcpr_2": (ApprovalState.APPROVED, flow.id, call_2, "weather", None, "key_1"),
    }
    assert all(one.decided_at is not None for one in found.values())
    assert "far" not in str(query("SELECT reason FROM tool_approvals"))
    noted = {
        (one.action, one.resource, one.actor, one.detail["job"])
        for one in list_entries(db, tenant)
        if "tool" in one.action
    }
    assert noted == {
        ("tool_call.refused", "mcpr_1", "key_1", flow.id),
        ("tool_call.approved", "mcpr_2", "key_1", flow.id),
    }
    with pytest.raises(InvalidRequest) as caught:
        accept(db, [answering(make_job, "mcpr_2", approve=False)])
    assert (caught.value.message, caught.value.param) == (
        Naming("mcpr_2 was answered"),
        "input",
    )
