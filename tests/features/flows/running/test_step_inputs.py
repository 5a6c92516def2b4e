"""The worker's part of a step: its references are filled in and its request is prepared, or the step fails."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from headrace.features.flows.running.step_inputs import StepInputs
from headrace.features.policy import policies
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.ids import new_id
from headrace.store.jobs.claims import Claim, Finish, claim, finish
from headrace.store.jobs.jobs import NewJob, accept
from headrace.store.payloads.job_payload import EVERY_MODEL, ServiceClass
from headrace.store.payloads.step_payload import REFERENCES, Marks
from headrace.store.registry.models import register_version
from headrace.store.schema.job_states import FLOW_TASK, UNSERVED_QUEUE, JobState
from headrace.store.tenants.api_keys import create_tenant

QUEUE = "tiny@1"
MARKS = Marks()
MARK = MARKS.mark("first.output.text")


Second = Callable[..., Claim]


@pytest.fixture
def second(db: Database) -> Second:
    """Claim the second of two steps, the first of which has answered this text.

    ``task``: of the first step. ``action``: of the tenant's policy for addresses in inputs, if it has one.
    """
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake:tiny",
        digest="0" * 64,
        dtype="float32",
        context_window=64,
        files={},
        actor="tests",
    )
    tenant_id = create_tenant(db, "acme")

    def job(**changes: Any) -> NewJob:
        values: dict[str, Any] = {"service_class": ServiceClass.STANDARD, "priority": 5, "input_tokens": 1}
        values |= {"cost_tokens": 1, "metadata": {}, "webhook": None, "max_attempts": 3, "deadline_s": 3600.0}
        values |= {"model": "tiny", "model_version": 1, "queue": QUEUE, "payload": {}, "task": "generate"}
        return NewJob(
            **{"id": new_id("job"), "tenant_id": tenant_id, "idempotency": None, "announce": False, **values, **changes}
        )

    def claimed(text: str, *, task: str = "generate", action: str | None = None) -> Claim:
        flow = job(task=FLOW_TASK, queue=UNSERVED_QUEUE)
        payload: dict[str, Any] = {
            "input": {"prompt": f"Go on: {MARK}"},
            "sampling": {"max_tokens": 8},
            REFERENCES: MARKS.paths,
        }
        if action is not None:
            rule = {"id": "mail", "action": action, "stage": "input", "kinds": ["email"]}
            stored = policies.put(db, tenant_id, EVERY_MODEL, {"version": 1, "rules": [rule]}, "tests")
            payload["policy"] = {"model": EVERY_MODEL, "version": stored.version, "counts": {"EMAIL": 1}}
        steps = (
            job(parent_id=flow.id, step="first", needs=(), task=task),
            job(parent_id=flow.id, step="second", needs=("first",), queue=UNSERVED_QUEUE, payload=payload),
        )
        accept(db, [replace(flow, steps=steps, answer_id=steps[1].id)])
        (first,) = claim(db, "worker", QUEUE, [steps[0].id], 60.0).values()
        output = {"text": text, "finish_reason": "stop"}
        ended = Finish(
            first.job_id, 1, JobState.SUCCEEDED, output, None, None, tenant_id=tenant_id, parent_id=first.parent_id
        )
        finish(db, [ended])
        return claim(db, "worker", QUEUE, [steps[1].id], 60.0)[steps[1].id]

    return claimed


def test_the_output_of_a_step_is_in_the_prepared_input_of_the_next(db: Database, second: Second) -> None:
    claimed = second("the river")
    StepInputs(db).fill(claimed)
    assert claimed.payload["input"] == {"prompt": "Go on: the river"}
    assert claimed.payload["sampling"]["max_tokens"] == 8
    assert REFERENCES not in claimed.payload
    filled = dict(claimed.payload)
    StepInputs(db).fill(claimed)
    assert claimed.payload == filled


def test_an_input_that_became_too_long_fails_the_step(db: Database, second: Second) -> None:
    with pytest.raises(InvalidRequest) as refused:
        StepInputs(db).fill(second("river " * 20))
    assert refused.value.code == "context_length_exceeded"


def test_what_references_stand_for_is_bounded_before_anything_is_filled_in(db: Database, second: Second) -> None:
    claimed = second("the river")
    other = Marks()
    claimed.payload["input"] = {"prompt": "".join(other.mark("first.output.text") for _ in range(5))}
    claimed.payload[REFERENCES] = other.paths
    with pytest.raises(InvalidRequest) as refused:
        StepInputs(db, most_chars=5 * len("the river") - 1).fill(claimed)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "input")
    StepInputs(db, most_chars=5 * len("the river")).fill(claimed)
    assert claimed.payload["input"] == {"prompt": "the river" * 5}


SAID = "ask ann@example.com"


@pytest.mark.parametrize(
    ("task", "action", "expected"),
    [("ask", "redact", "Go on: ask <EMAIL_100001>"), ("ask", "block", None), ("generate", "block", f"Go on: {SAID}")],
)
def test_the_policy_sees_what_a_task_from_outside_returned(
    db: Database, second: Second, task: str, action: str, expected: str | None
) -> None:
    """The task ``ask`` is of a package that this worker does not have.

    The number of the placeholder is far from those of the job's own input, which a later step may put back.
    """
    claimed = second(SAID, task=task, action=action)
    if expected is None:
        with pytest.raises(InvalidRequest) as refused:
            StepInputs(db).fill(claimed)
        assert refused.value.code == "policy_blocked_input"
    else:
        StepInputs(db).fill(claimed)
        assert claimed.payload["input"]["prompt"] == expected
