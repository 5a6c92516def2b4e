"""The types of the store tests' fixtures, and the queue that their jobs are for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.jobs.jobs import NewJob
from headrace.store.schema.job_states import FLOW_TASK, UNSERVED_QUEUE

QUEUE = "tiny@1"


class MakeJob(Protocol):
    """Builds a job to accept; every field can be given."""

    def __call__(self, **changes: Any) -> NewJob: ...


class Query(Protocol):
    """Runs one SQL statement and returns its rows."""

    def __call__(self, statement: str, **values: object) -> list[dict[str, Any]]: ...


AcceptOne = Callable[..., str]

Needs = dict[str, tuple[str, ...]]
CHAIN: Needs = {"first": (), "second": ("first",), "third": ("second",)}
JOIN: Needs = {"left": (), "right": (), "both": ("left", "right")}


def new_flow(make_job: MakeJob, needs: Needs, **changes: Any) -> NewJob:
    """Make a job of steps with these needs, the last of which has the answer."""
    parent = make_job(task=FLOW_TASK, queue=UNSERVED_QUEUE, input_tokens=0, cost_tokens=0, announce=False, **changes)
    kept = ("tenant_id", "deadline_s", "max_attempts", "service_class")
    given = {name: value for name, value in changes.items() if name in kept}
    steps = tuple(
        make_job(
            parent_id=parent.id,
            step=name,
            needs=names,
            queue=UNSERVED_QUEUE if names else QUEUE,
            announce=False,
            webhook={"url": None, "events": []},
            **given,
        )
        for name, names in needs.items()
    )
    return replace(parent, steps=steps, answer_id=steps[-1].id)


# An approval of a job without steps, as if the job were a call that waits.
_ASK = text("""
WITH call AS (UPDATE jobs SET step = 'call' WHERE id = :job_id RETURNING id, tenant_id)
INSERT INTO tool_approvals (id, tenant_id, job_id, step_id, tool, expires_at)
SELECT :id, tenant_id, id, id, 'weather', now() + interval '1 h' FROM call
""")


def ask_approval(db: Database, tenant_id: str, job_id: str) -> str:
    """Let a queued job wait for an approval; return the id of the approval."""
    approval_id = new_id("apr")
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_ASK, {"id": approval_id, "job_id": job_id})
    return approval_id
