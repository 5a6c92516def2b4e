"""Own tasks, which are those of other packages: found by entry points, checked, and described as any other task.

A fault in one stops the process that imports this with one line, because without the task its jobs would wait for ever.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.task_spec import TaskSpec
from headrace.tasks import Task

GROUP = "headrace.tasks"
MAX_TOKENS = 131_072
MAX_CALL_S = 3600
OWN_TASK_ADVICE = "a task of your own can compute it: `headrace new-task` begins one (docs/extending.md)"
"""The end of a refusal of a model that no engine here runs."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_RUNNER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class OwnPayload(Strict):
    """The part of a request that the worker needs, as stored in the job row. A task's subclass narrows ``input``."""

    input: BaseModel
    policy: PinnedPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTaskSpec(TaskSpec):
    """A task of another package: what the package declares, the schema of its input, the stored form of requests."""

    declared: Task
    input: type[BaseModel]
    payload: type[OwnPayload]


def find_own_tasks(taken: Collection[str]) -> tuple[OwnTaskSpec, ...]:
    """Return the tasks of all installed packages, by name. ``taken``: the names of Headrace's own tasks.

    Ends the process (SystemExit) with one line if an entry point cannot be used.
    """
    found: dict[str, OwnTaskSpec] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        task = _load(entry)
        if task.name in taken or task.name in found:
            _stop(entry, f"the name {task.name} is taken by another task: choose another name")
        if (fault := _fault_of(task)) is not None:
            _stop(entry, fault)
        found[task.name] = spec_of(task)
    return tuple(found.values())


def _stop(entry: EntryPoint, why: str) -> NoReturn:
    package = "" if entry.dist is None else f" of the package {entry.dist.name}"
    raise SystemExit(f"headrace: the task {entry.name} = {entry.value}{package} cannot be used: {why}")


def _load(entry: EntryPoint) -> Task:
    try:
        task = entry.load()
    except Exception as error:  # noqa: BLE001 - whatever a foreign module raises while it is imported
        said = " ".join(str(error).split())
        _stop(entry, f"{type(error).__name__}: {said}. Repair the package or uninstall it")
    if not isinstance(task, Task):
        _stop(entry, f"it is a {type(task).__name__}, not a headrace.tasks.Task")
    return task


def _fault_of(task: Task) -> str | None:
    """Return what is wrong with a task, in one sentence; None if nothing is."""
    if not isinstance(task.name, str) or not _NAME.fullmatch(task.name):
        return f"its name is {task.name!r}, and must be up to 40 of a-z, 0-9 and _, with a letter first"
    if not isinstance(task.runner, str) or not _RUNNER.fullmatch(task.runner):
        return f"`runner` is {task.runner!r}, and must be package.module:function"
    for name, kind in (("input", task.input), ("output", task.output)):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return f"`{name}` must be a subclass of pydantic.BaseModel"
    if not 1 <= task.most_tokens <= MAX_TOKENS:
        return f"`most_tokens` is {task.most_tokens}, and must be from 1 to {MAX_TOKENS}"
    if not 0 < task.call_timeout_s <= MAX_CALL_S:
        return f"`call_timeout_s` is {task.call_timeout_s}, and must be above 0 and at most {MAX_CALL_S}"
    return _fault_of_fields(task)


def _fault_of_fields(task: Task) -> str | None:
    if unknown := sorted(set(task.output_texts or ()) - task.output.model_fields.keys()):
        return f"`output_texts` names {', '.join(unknown)}, which the output does not have"
    if "policy" in task.output.model_fields:
        return "the output has a field `policy`, which Headrace adds itself: choose another name"
    if task.with_context and "files" in task.output.model_fields:
        return "the output has a field `files`, which Headrace adds itself: choose another name"
    try:
        _strict(task).model_validate(task.example)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, problem["loc"])) or "it" for problem in error.errors())
        return f"`example` does not fit the input: {where}"
    return None


def _strict(task: Task) -> type[BaseModel]:
    """Return the input's schema under a name of its own. It refuses unknown fields: one that is ignored misleads."""
    fields: dict[str, Any] = {"__module__": __name__, "__doc__": task.input.__doc__}
    fields["model_config"] = ConfigDict(extra="forbid")
    metaclass: Any = type(task.input)
    kind: type[BaseModel] = metaclass(f"{_camel(task.name)}Input", (task.input,), fields)
    return kind


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def spec_of(task: Task) -> OwnTaskSpec:
    """Return the description of a task for the rest of Headrace."""
    name, kind, url = task.name, _strict(task), f"/v1/tasks/{task.name}"
    about: Any = Field(description="the input of the task")
    its_name: Any = Literal[name]
    request = create_model(
        f"{_camel(name)}Request",
        __base__=JobOrder,
        __doc__=f"The body of ``POST /v1/jobs`` for the task {name}.",
        task=(its_name, ...),
        input=(kind, about),
    )
    payload = create_model(f"{_camel(name)}Payload", __base__=OwnPayload, input=(kind, about))
    body = {"task": name, "model": "mymodel", "input": dict(task.example)}
    return OwnTaskSpec(
        name=name,
        request=request,
        output=task.output,
        runner=f"own:{name}",
        fake_runner=f"own:{name}:without-files",
        urls=(url,),
        purpose=f"serves the task {name}: use {url}, or the task {name}",
        url_example={"input": dict(task.example)},
        is_from_outside=True,
        has_progress=task.with_context,
        examples={name: {"summary": task.summary or f"The task {name}", "value": body}},
        declared=task,
        input=kind,
        payload=payload,
    )
