"""The list of all tasks, and what follows from it.

Tasks of features (the files ``task``) and of other packages (``own_task``) are found when this module is imported.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Discriminator, Tag

from headrace.assembly import parts
from headrace.store.errors import CannotLoadHere
from headrace.store.payloads.job_payload import JobOrder
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.tasks.generate import GENERATE
from headrace.store.tasks.own_task import OwnTaskSpec, find_own_tasks
from headrace.store.tasks.task_spec import TaskSpec

DEFAULT_TASK = GENERATE
"""The task of a request that names none."""

_OURS = (GENERATE, *parts("task", TaskSpec))
_ALL = (*_OURS, *find_own_tasks({FLOW_TASK, *(task.name for task in _OURS)}))
OWN_TASKS = tuple(task for task in _ALL if isinstance(task, OwnTaskSpec))
"""The tasks of other packages that are installed beside Headrace, and those of features that are declared so."""

TASKS: Mapping[str, TaskSpec] = {task.name: task for task in _ALL}

MODEL_TASKS: Mapping[str, TaskSpec] = {task.name: task for task in _ALL if not task.served_by}
"""The tasks with model versions of their own."""

TASK_OF_RUNNER: Mapping[str, TaskSpec] = {
    runner: task for task in MODEL_TASKS.values() for runner in (task.runner, task.fake_runner, *task.external_runners)
}
FAKE_RUNNERS = tuple(task.fake_runner for task in MODEL_TASKS.values())


def known_task(name: str) -> TaskSpec:
    """Return a task. Raises CannotLoadHere for one whose package is not installed beside this process."""
    if name not in TASKS:
        raise CannotLoadHere(f"the task {name} is not installed here: install its package where this process runs")
    return TASKS[name]


def is_from_outside(name: str) -> bool:
    """Return ``TaskSpec.is_from_outside`` of a task; True for one whose package is not installed here."""
    return name not in TASKS or TASKS[name].is_from_outside


BULKY_OUTPUTS = frozenset(name for task in TASKS.values() for name in task.bulky_outputs)

TASK_TAG = "task:"
"""The prefix of a member's tag in ``JobRequest``. Pydantic puts the tag before the field that a complaint names."""


def tag_of(body: object) -> str:
    """Return the tag of the body's task."""
    if isinstance(body, Mapping):
        task = body.get("task", DEFAULT_TASK.name)
    else:
        task = getattr(body, "task", DEFAULT_TASK.name)
    return f"{TASK_TAG}{task}" if isinstance(task, str) else TASK_TAG


MEMBERS = tuple(Annotated[task.request, Tag(f"{TASK_TAG}{task.name}")] for task in TASKS.values())


def by_task(tag: Callable[[object], str]) -> Discriminator:
    """Return what finds the member of a union of requests by its tag."""
    return Discriminator(
        tag, custom_error_type="task_unknown", custom_error_message=f"the task is one of {', '.join(TASKS)}"
    )


if TYPE_CHECKING:
    JobRequest = JobOrder
else:
    JobRequest = Annotated[
        reduce(or_, MEMBERS),
        by_task(tag_of),
    ]
"""The body of ``POST /v1/jobs``: the request of any task."""
