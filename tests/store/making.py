"""The types of the store tests' fixtures, and the queue that their jobs are for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from store.jobs.jobs import NewJob
from store.schema.cache_results import UNSERVED_QUEUE
from store.schema.job_states import FLOW_TASK

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
