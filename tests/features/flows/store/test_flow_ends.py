"""What follows from the states of a flow's steps: the decision as a value, and all that its transaction writes."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.features.flows.store.added import Added, AddedStep, AskedApproval
from headrace.features.flows.store.beginnings import note_begun
from headrace.features.flows.store.decisions import Flow, FlowDecision, FlowStep, decide
from headrace.features.flows.store.growth import names_after
from headrace.features.flows.store.stuck_flows import count_stuck_flows
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import (
    Claim,
    Finish,
    Release,
    claim,
    finish,
    release,
)
from headrace.store.jobs.flow_turns import is_added
from headrace.store.jobs.jobs import accept, get, list_steps, request_cancel, stored_deltas, timeline
from headrace.store.jobs.parent_part import AnnouncedStep, BegunStep, Settled
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.schema.job_states import UNSERVED_QUEUE, JobState
from tests.refusals import Naming
from tests.sealing import TurnedSeal
from tests.store.making import CHAIN, JOIN, QUEUE, MakeJob, Needs, Query, new_flow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Q, R, S = JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED
F, X, C = JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED


def step(name: str, state: JobState, *needs: str, waits: bool = False, ended: int | None = None) -> FlowStep:
    completed_at = None if ended is None else NOW + timedelta(seconds=ended)
    return FlowStep(f"job_{name}", name, needs, state, is_waiting=waits, completed_at=completed_at)


FAILED_LATE, FAILED_SOON = step("b", F, ended=2), step("c", F, ended=1)


@pytest.mark.parametrize(
    ("state", "is_cancelled", "steps", "expected"),
    [
        (Q, False, [step("a", Q), step("b", Q, "a", waits=True)], FlowDecision()),
        (Q, False, [step("a", R), step("b", Q, "a", waits=True)], FlowDecision(has_begun=True)),
        (
            R,
            False,
            [step("a", S), step("b", Q, "a", waits=True), step("c", Q, "a", "b", waits=True)],
            FlowDecision(ready=("job_b",), has_begun=True),
        ),
        (R, False, [step("a", S), step("b", Q, "a")], FlowDecision(has_begun=True)),
        (R, False, [step("a", S), step("b", S, "a")], FlowDecision(end=S)),
        (
            R,
            False,
            [step("a", S), FAILED_LATE, step("d", R), step("e", Q, "d", waits=True)],
            FlowDecision(stopped=("job_d", "job_e"), has_begun=True),
        ),
        (
            R,
            False,
            [FAILED_LATE, FAILED_SOON, step("d", Q)],
            FlowDecision(stopped=("job_d",), end=F, cause=FAILED_SOON),
        ),
        (
            R,
            False,
            [step("a", X, ended=0), FAILED_LATE, step("d", C, ended=0)],
            FlowDecision(end=F, cause=FAILED_LATE),
        ),
        (
            R,
            False,
            [step("a", C, ended=0), step("b", X, ended=5)],
            FlowDecision(end=X, cause=step("b", X, ended=5)),
        ),
        (R, True, [step("a", S), step("b", R)], FlowDecision(stopped=("job_b",), has_begun=True)),
        (Q, True, [step("a", Q), step("b", Q)], FlowDecision(stopped=("job_a", "job_b"), end=C)),
        (R, True, [step("a", S)], FlowDecision(end=S)),
        (F, False, [step("a", F), step("b", R)], FlowDecision(stopped=("job_b",))),
        (S, False, [step("a", S)], FlowDecision()),
    ],
)
def test_a_decision_follows_from_the_states(
    state: JobState, is_cancelled: bool, steps: Sequence[FlowStep], expected: FlowDecision
) -> None:
    assert decide(Flow("job_f", "t", state, is_cancelled, "job_b"), steps) == expected


def test_of_steps_without_a_time_the_first_is_the_cause() -> None:
    steps = [step("b", F), step("a", F), step("c", F, ended=9)]
    assert decide(Flow("job_f", "t", R, False, "job_b"), steps).cause == steps[2]
    assert decide(Flow("job_f", "t", R, False, "job_b"), steps[:2]).cause == steps[1]


@pytest.mark.parametrize(
    ("name", "count", "names"),
    [("answer", 1, ("answer:1",)), ("answer:1", 2, ("answer:2", "answer:3")), ("answer", 0, ())],
)
def test_added_steps_are_numbered(name: str, count: int, names: tuple[str, ...]) -> None:
    assert names_after(name, count) == names


def test_a_caller_can_give_no_such_name() -> None:
    assert [is_added(name) for name in ("a:1", "a", "1", "a:b", "a:", "a:1:2")] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]


def usage(**changes: Any) -> dict[str, Any]:
    return {
        "input_tokens": 5,
        "output_tokens": 2,
        "cached_tokens": 1,
        "reasoning_tokens": 1,
        "queue_ms": 4.0,
        "first_token_ms": 6.0,
        "compute_ms": 3.0,
        **changes,
    }


def begin(db: Database, *ids: str) -> list[Claim]:
    found = claim(db, "worker", QUEUE, ids, 60.0)
    return [found[one] for one in ids]


def ended(claimed: Claim, state: JobState = S, **changes: Any) -> Finish:
    values: dict[str, Any] = {"output": {"text": claimed.step}, "error": None, "usage": usage(), **changes}
    return Finish(
        claimed.job_id, claimed.epoch, state, tenant_id=claimed.tenant_id, parent_id=claimed.parent_id, **values
    )


class Stored:
    """A flow that was accepted, with the ids of its steps by name."""

    def __init__(self, db: Database, make_job: MakeJob, needs: Needs = CHAIN, **changes: Any) -> None:
        parent = new_flow(make_job, needs, **changes)
        accept(db, [parent])
        self.id, self.answer_id = parent.id, parent.answer_id
        self.steps = {one.step or "": one.id for one in parent.steps}


def test_a_settled_flow_tells_its_hints_and_its_readers(db: Database, make_job: MakeJob) -> None:
    flow, told = Stored(db, make_job), list[Settled]()
    for name in CHAIN:
        finish(db, [ended(begin(db, flow.steps[name])[0])], told.append)
    announced = [(AnnouncedStep(flow.steps[name], QUEUE, "generate", "tiny", 1),) for name in ("second", "third")]
    assert told == [
        Settled((), announced[0], (flow.steps["third"],)),
        Settled((), announced[1], (flow.steps["third"],)),
        Settled((flow.id,), (), (flow.steps["third"],)),
    ]


def test_the_timeline_has_each_attempt_and_each_end_of_a_step(db: Database, tenant: str, make_job: MakeJob) -> None:
    flow = Stored(db, make_job, JOIN)
    left, right = begin(db, flow.steps["left"], flow.steps["right"])
    finish(db, [ended(left)])
    finish(db, [ended(right, F, output=None, usage=None, error={"code": "bad", "message": "no"})])
    events = [(event.kind, event.epoch, event.detail) for event in timeline(db, tenant, flow.id)]
    started = [{"step": one.step, "job": one.job_id, "attempt": 1} for one in (left, right)]
    assert events[0] == ("queued", 0, {})
    assert sorted(events[1:3], key=lambda event: event[2]["step"]) == [("step_started", 0, one) for one in started]
    assert (
        events[3:5]
        == [
            ("step_finished", 0, {"step": "left", "job": left.job_id, "state": "succeeded", "usage": usage()}),
            ("step_finished", 0, {"step": "right", "job": right.job_id, "state": "failed", "code": "bad"}),
        ]
        or events[3:5] == events[3:5][::-1]
    )
    assert events[5:] == [
        ("step_finished", 0, {"step": "both", "job": flow.steps["both"], "state": "cancelled"}),
        ("failed", 0, {"code": "bad"}),
    ]


def test_an_attempt_that_was_not_noted_is_noted_with_the_end(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    flow = Stored(db, make_job)
    (claimed,) = begin(db, flow.steps["first"])
    query("DELETE FROM job_events WHERE kind = 'step_started'")
    finish(db, [ended(claimed)])
    noted = [(event.kind, event.detail.get("attempt")) for event in timeline(db, tenant, flow.id)]
    assert noted == [("queued", None), ("step_started", 1), ("step_finished", None)]


def test_a_beginning_is_noted_in_flows_that_run_and_tells_their_answers(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    flow, over = Stored(db, make_job), Stored(db, make_job)
    request_cancel(db, tenant, over.id)
    begun = [BegunStep(one.id, one.steps["first"], "first", 3) for one in (flow, over)]
    assert note_begun(db, begun) == [flow.answer_id]
    event = timeline(db, tenant, flow.id)[-1]
    assert (event.kind, event.detail) == ("step_started", {"step": "first", "job": flow.steps["first"], "attempt": 3})
    assert [one.kind for one in timeline(db, tenant, over.id)].count("step_started") == 0
    found = get(db, tenant, flow.id)
    assert (found.state, found.owner, found.started_at is not None) == (R, "flow", True)
    assert get(db, tenant, over.id).state is C


def test_usage_is_that_of_all_steps_and_times_are_those_of_the_job(
    db: Database, tenant: str, make_job: MakeJob
) -> None:
    flow, cancelled = Stored(db, make_job, JOIN), Stored(db, make_job, JOIN)
    left, right = begin(db, flow.steps["left"], flow.steps["right"])
    finish(db, [ended(left, usage=usage(queue_ms=9.0, reasoning_tokens=None)), ended(right)])
    (both,) = begin(db, flow.steps["both"])
    finish(db, [ended(both, usage=usage(first_token_ms=70.0, queue_ms=50.0))])
    assert get(db, tenant, flow.id).usage == {
        "input_tokens": 15,
        "output_tokens": 6,
        "cached_tokens": 3,
        "reasoning_tokens": 2,
        "compute_ms": 9.0,
        "queue_ms": 4.0,
        "first_token_ms": 70.0,
    }
    request_cancel(db, tenant, cancelled.id)
    assert get(db, tenant, cancelled.id).usage is None


def test_an_error_without_words_has_some_and_an_answer_in_part_is_kept(
    db: Database, tenant: str, make_job: MakeJob
) -> None:
    broken, stopped = Stored(db, make_job, {"only": ()}), Stored(db, make_job, {"only": ()})
    first, second = begin(db, broken.steps["only"], stopped.steps["only"])
    request_cancel(db, tenant, stopped.id)
    finish(
        db,
        [
            ended(first, F, output={"text": "part"}, deltas=("part",)),
            ended(second, C, output={"text": "part"}, deltas=("pa", "rt")),
        ],
    )
    job = get(db, tenant, broken.id)
    assert (job.state, job.output, job.num_deltas) == (F, None, 0)
    assert job.error == {"code": "internal_error", "message": Naming("step only: "), "step": "only"}
    job = get(db, tenant, stopped.id)
    assert (job.state, job.output, job.error) == (C, {"text": "part"}, None)
    stream = stored_deltas(db, tenant, stopped.id)
    assert stream is not None
    assert stream.deltas == ["pa", "rt"]


def test_an_answer_that_cannot_be_read_fails_its_flow(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    db.seal = TurnedSeal("k1")
    flow = Stored(db, make_job, {"answer": (), "other": ()})
    query("UPDATE jobs SET answer_id = :answer WHERE id = :id", answer=flow.steps["answer"], id=flow.id)
    answer, other = begin(db, flow.steps["answer"], flow.steps["other"])
    finish(db, [ended(answer)])
    db.seal = TurnedSeal("k2")
    with capture_logs() as logs:
        finish(db, [ended(other)])
    assert [(line["event"], line["job_id"]) for line in logs] == [("step_not_opened", answer.job_id)]
    rows = query("SELECT step, state, epoch FROM jobs ORDER BY step NULLS LAST")
    assert [tuple(row.values()) for row in rows] == [
        ("answer", "succeeded", 1),
        ("other", "succeeded", 1),
        (None, "failed", 0),
    ]
    assert timeline(db, tenant, flow.id)[-1].detail == {"code": "internal_error"}


def test_a_step_that_is_given_back_announces_nothing(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    flow = Stored(db, make_job, JOIN)
    left, right = begin(db, flow.steps["left"], flow.steps["right"])
    query("UPDATE jobs SET max_attempts = 1 WHERE id = :id", id=right.job_id)
    release(db, [Release(right.job_id, 1, charge=True, parent_id=flow.id)])
    job = get(db, tenant, left.job_id)
    assert (job.state, job.cancel_requested_at is not None) == (R, True)
    finish(db, [ended(left, C, output=None)])
    error = get(db, tenant, flow.id).error or {}
    assert (error["code"], error["step"]) == ("max_attempts_exceeded", "right")


def added(*steps: tuple[str, tuple[str, ...]], **changes: Any) -> Added:
    made = (AddedStep(name, "embed", "vectors", 7, {"of": name}, 3, 10, needs) for name, needs in steps)
    return Added(tuple(made), **changes)


def test_an_added_step_has_all_that_its_flow_has(db: Database, tenant: str, make_job: MakeJob, query: Query) -> None:
    flow = Stored(
        db,
        make_job,
        {"only": ()},
        api_key_id="key_1",
        project_id="proj_1",
        user_id="mia",
        traceparent="trace",
        priority=2,
        max_attempts=4,
        service_class=ServiceClass.BATCH,
    )
    (claimed,) = begin(db, flow.steps["only"])
    new = added(("only:1", ("only",)), ("only:2", ("only", "only:1")), answer="only:2")
    finish(db, [ended(claimed, added=new)])
    names = (
        "step, task, model, model_version, queue, class_rank, priority, input_tokens, cost_tokens, webhook, "
        "(payload #>> '{}')::json AS payload, "
        "epoch, restarts_after, max_attempts, api_key_id, project_id, user_id, traceparent, needs, state"
    )
    rows = query(f"SELECT {names} FROM jobs WHERE parent_id = :id AND step <> 'only' ORDER BY step", id=flow.id)
    common = {
        "task": "embed",
        "model": "vectors",
        "model_version": 7,
        "class_rank": 2,
        "priority": 2,
        "input_tokens": 3,
        "cost_tokens": 10,
        "webhook": {"events": []},
        "max_attempts": 4,
        "api_key_id": "key_1",
        "project_id": "proj_1",
        "user_id": "mia",
        "traceparent": "trace",
        "state": "queued",
    }
    calls = {"step": "only:1", "queue": "vectors@7", "payload": {"of": "only:1"}, "needs": ["only"]}
    answer = {"step": "only:2", "queue": UNSERVED_QUEUE, "payload": {"of": "only:2"}, "needs": ["only", "only:1"]}
    assert rows == [
        common | calls | {"epoch": 0, "restarts_after": None},
        common | answer | {"epoch": 1, "restarts_after": 1},
    ]
    assert get(db, tenant, flow.id).answer_id == new.steps[1].id
    assert [event.kind for event in timeline(db, tenant, new.steps[0].id)] == ["queued"]


def test_a_call_waits_for_its_approval_and_a_url_that_asked_is_told(
    db: Database, tenant: str, make_job: MakeJob, query: Query
) -> None:
    told = Stored(
        db,
        make_job,
        {"only": ()},
        webhook={"url": "https://example.com/own", "events": ["job.approval_required", "job.failed"]},
    )
    quiet = Stored(db, make_job, {"only": ()}, webhook={"url": "https://example.com/own"})
    asked = []
    for flow in (told, quiet):
        (claimed,) = begin(db, flow.steps["only"])
        (call,) = added(("only:1", ("only",))).steps
        call = replace(call, approval=AskedApproval("weather", 90.0))
        finish(db, [ended(claimed, added=Added((call,), "only:1"))])
        asked.append(call)
    call = asked[0]
    assert call.approval is not None
    rows = query(
        "SELECT id, tenant_id, job_id, step_id, tool, state, extract(epoch FROM expires_at - now()) AS left_s "
        "FROM tool_approvals WHERE job_id = :id",
        id=told.id,
    )
    assert 0 < rows[0].pop("left_s") <= 90
    expected = {"id": call.approval.id, "job_id": told.id, "step_id": call.id, "tool": "weather", "state": "pending"}
    assert rows == [expected | {"tenant_id": tenant}]
    (event,) = (one for one in timeline(db, tenant, told.id) if one.kind == "approval_requested")
    noted = {"approval": call.approval.id, "step": "only:1", "job": call.id, "tool": "weather"}
    assert event.detail == noted
    assert query("SELECT needs, queue FROM jobs WHERE id = :id", id=call.id) == [
        {"needs": ["only", call.approval.id], "queue": UNSERVED_QUEUE}
    ]
    assert query("SELECT job_id, type, url FROM webhook_deliveries") == [
        {"job_id": call.id, "type": "job.approval_required", "url": "https://example.com/own"}
    ]
    assert count_stuck_flows(db) == 0
    query("UPDATE tool_approvals SET state = 'refused' WHERE job_id = :id", id=quiet.id)
    assert count_stuck_flows(db) == 1
    assert count_stuck_flows(db, most=0) == 0


def test_too_many_steps_are_counted_and_a_name_twice_is_a_defect(db: Database, tenant: str, make_job: MakeJob) -> None:
    many, twice = Stored(db, make_job, {"only": ()}), Stored(db, make_job, {"only": ()})
    first, second = begin(db, many.steps["only"], twice.steps["only"])
    finish(
        db,
        [
            ended(first, deltas=("a",), added=added(("only:1", ()), ("only:2", ()), most_steps=2)),
            ended(second, added=added(("only", ()))),
        ],
    )
    found = [get(db, tenant, claimed.job_id) for claimed in (first, second)]
    assert [job.error for job in found] == [
        {
            "code": "too_many_steps",
            "message": Naming("3 steps", "2 "),
            "retryable": False,
        },
        {"code": "internal_error", "message": Naming("added step"), "retryable": False},
    ]
    assert [(job.output, job.num_deltas) for job in found] == [(None, 0), (None, 0)]
    assert [len(list_steps(db, tenant, flow.id)) for flow in (many, twice)] == [1, 1]


def test_a_text_that_postgres_cannot_hold_is_replaced_also_in_a_list(
    db: Database, tenant: str, make_job: MakeJob
) -> None:
    job = make_job()
    accept(db, [job])
    (claimed,) = begin(db, job.id)
    finish(db, [ended(claimed, output={"a\0": ["b\0", {"c": "\ud800"}], "n": 1})])
    assert get(db, tenant, job.id).output == {"a\ufffd": ["b\ufffd", {"c": "?"}], "n": 1}
    with pytest.raises(InvalidRequest):
        accept(db, [make_job(payload={"a": "\0"})])
    with pytest.raises(ValueError, match="as running"):
        ended(claimed, R)
