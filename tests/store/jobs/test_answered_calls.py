"""Answers to approvals that a job brings: each is stored once, also when two jobs are accepted together."""

from dataclasses import replace
from functools import partial

from store.calls.approvals import ApprovalState, list_approvals, verdict_of
from store.db.database import Database
from store.db.group_commit import isolated
from store.errors import InvalidRequest
from store.jobs.answered_calls import ANSWERED, ITEM
from store.jobs.jobs import Accepted, NewJob, accept
from store.jobs.responses import NewResponse
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
