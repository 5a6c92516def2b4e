"""The body of ``POST /v1/jobs`` with several steps, and its check. No I/O.

A step is a job of a task: its ``input`` and the task's own fields are as in a job of one step, and may have references
(``store.payloads.references``) to the job's input and to outputs of the steps that it needs.
"""

from collections.abc import Mapping, Sequence
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, StringConstraints, Tag

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import JobOrder, JobTerms
from headrace.store.payloads.prompt_reference import PromptUse, TemplatePlace
from headrace.store.payloads.references import MARK, OF_INPUT, references, step_of
from headrace.store.payloads.strict_model import Body
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.tasks.generate import GENERATE
from headrace.store.tasks.own_task import OwnTaskSpec
from headrace.store.tasks.registry import MEMBERS, TASK_TAG, TASKS, by_task, tag_of

MAX_STEPS: Final = 256
"""Most steps that the setting ``max_steps`` may allow."""

StepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]

_OF_JOB = JobTerms.model_fields.keys()


class FlowStepBody(Body):
    """A step. It has the other fields of its task too, for example ``sampling``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: StepName
    task: Annotated[str, StringConstraints(max_length=64)] = GENERATE.name
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    input: dict[str, Any] = Field(description='as of the task; `{"$from": "step.output.field"}` stands for a text')
    needs: Annotated[tuple[StepName, ...], Field(max_length=MAX_STEPS)] = Field(
        (), description="the steps that must have succeeded before"
    )
    stream: bool = Field(
        False, description="its output and stream are the job's; needed if several steps are last, else it is the last"
    )

    _filled_from: tuple[PromptUse, TemplatePlace] | None = PrivateAttr(None)

    @property
    def own_fields(self) -> dict[str, Any]:
        """The fields of the task beside its input."""
        return dict(self.model_extra or {})

    @property
    def filled_from(self) -> tuple[PromptUse, TemplatePlace] | None:
        """The prompt template that its input was made from already, and where its messages are; None: no template."""
        return self._filled_from

    def made_from(self, use: PromptUse | None, place: TemplatePlace | None) -> Self:
        """Return the step with an input that was made from this prompt template; None: without one."""
        made = self.model_copy()
        # A private attribute of a step, which no request can bring; ``model_copy(update=...)`` takes fields alone.
        made._filled_from = None if use is None or place is None else (use, place)  # noqa: SLF001 - of this class
        return made


class FlowRequest(JobTerms):
    """The body of ``POST /v1/jobs`` for a job of several steps."""

    task: Literal["flow"] = FLOW_TASK
    input: dict[str, Any] = Field(default_factory=dict, description="any values, for the references of steps")
    steps: Annotated[tuple[FlowStepBody, ...], Field(min_length=1, max_length=MAX_STEPS)] = Field(
        description="requests of which later ones may use the outputs of earlier ones"
    )


class PipelineRequest(JobTerms):
    """The body of ``POST /v1/jobs`` for a job of the steps of a stored pipeline."""

    task: Literal["flow"] = FLOW_TASK
    pipeline: Annotated[str, StringConstraints(min_length=1, max_length=300)] = Field(
        description="name or id of the pipeline; `name@2` and `name@alias` name a version too"
    )
    input: dict[str, Any] = Field(default_factory=dict, description="as the pipeline's `input_schema` has it")


FLOW_EXAMPLES: Final[Mapping[str, Any]] = {
    "steps": {
        "summary": "Several steps",
        "value": {
            "input": {
                "text": "The old mill stands by the river. Since 1840 it has ground the corn of the whole valley. "
                "Last year it was closed, because the river has too little water in summer."
            },
            "steps": [
                {
                    "name": "summary",
                    "model": "smollm2",
                    "input": {
                        "messages": [
                            {"role": "user", "content": {MARK: "input.text"}},
                            {"role": "user", "content": "Summarize this text in one sentence."},
                        ]
                    },
                    "sampling": {"max_tokens": 64, "temperature": 0},
                },
                {
                    "name": "title",
                    "model": "smollm2",
                    "needs": ["summary"],
                    "input": {
                        "messages": [
                            {"role": "user", "content": {MARK: "summary.output.text"}},
                            {"role": "user", "content": "Write a headline for this text."},
                        ]
                    },
                    "sampling": {"max_tokens": 24, "temperature": 0},
                },
            ],
        },
    },
}
"""OpenAPI examples of the request, by name."""


def _tag_of(body: object) -> str:
    if "pipeline" in body if isinstance(body, Mapping) else isinstance(body, PipelineRequest):
        return f"{TASK_TAG}pipeline"
    has_steps = "steps" in body if isinstance(body, Mapping) else isinstance(body, FlowRequest)
    return f"{TASK_TAG}{FLOW_TASK}" if has_steps else tag_of(body)


if TYPE_CHECKING:
    JobOrFlowRequest = JobOrder | FlowRequest | PipelineRequest
else:
    JobOrFlowRequest = Annotated[
        reduce(
            or_,
            (
                Annotated[FlowRequest, Tag(f"{TASK_TAG}{FLOW_TASK}")],
                Annotated[PipelineRequest, Tag(f"{TASK_TAG}pipeline")],
                *MEMBERS,
            ),
        ),
        by_task(_tag_of),
    ]
"""The body of ``POST /v1/jobs``: the request of any task, one with steps, or one that names a pipeline."""


def check_steps(steps: Sequence[FlowStepBody], most: int) -> tuple[list[FlowStepBody], FlowStepBody]:
    """Return the steps in an order in which each comes after those that it needs, and the step with the answer.

    Raises InvalidRequest that names the first step with a mistake.
    """
    if len(steps) > most:
        raise InvalidRequest(f"the job has {len(steps)} steps, and at most {most} are accepted", param="steps")
    by_name: dict[str, FlowStepBody] = {}
    for index, step in enumerate(steps):
        if step.name in by_name or step.name == OF_INPUT:
            raise InvalidRequest(
                f"the name `{step.name}` is taken: give each step its own", param=f"steps[{index}].name"
            )
        by_name[step.name] = step
    for index, step in enumerate(steps):
        _check_fields(step, by_name, f"steps[{index}]")
    order = _in_order(steps)
    _check_references(steps, by_name, _all_needs(order))
    return order, _answer_of(steps)


def _check_fields(step: FlowStepBody, by_name: Mapping[str, FlowStepBody], place: str) -> None:
    if step.task not in TASKS:
        raise InvalidRequest(f"the task is one of {', '.join(TASKS)}", param=f"{place}.task")
    if of_job := sorted(step.own_fields.keys() & _OF_JOB):
        raise InvalidRequest(f"`{of_job[0]}` is of the job: write it beside `steps`", param=f"{place}.{of_job[0]}")
    own = TASKS[step.task].request.model_fields.keys() - JobOrder.model_fields.keys()
    if unknown := sorted(step.own_fields.keys() - own):
        raise InvalidRequest(f"the task {step.task} has no field {unknown[0][:64]!r}", param=place)
    for number, name in enumerate(step.needs):
        if name not in by_name:
            raise InvalidRequest(f"there is no step `{name}`", param=f"{place}.needs[{number}]")


def _in_order(steps: Sequence[FlowStepBody]) -> list[FlowStepBody]:
    order: list[FlowStepBody] = []
    done: set[str] = set()
    while len(order) < len(steps):
        ready = [step for step in steps if step.name not in done and done.issuperset(step.needs)]
        if not ready:
            left = ", ".join(step.name for step in steps if step.name not in done)
            raise InvalidRequest(f"these steps wait for each other: {left[:300]}", param="steps")
        order += ready
        done.update(step.name for step in ready)
    return order


def _all_needs(order: Sequence[FlowStepBody]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for step in order:
        found[step.name] = set(step.needs).union(*(found[name] for name in step.needs))
    return found


def _check_references(
    steps: Sequence[FlowStepBody], by_name: Mapping[str, FlowStepBody], all_needs: Mapping[str, set[str]]
) -> None:
    for index, step in enumerate(steps):
        place = f"steps[{index}].input"
        try:
            others = {path: name for path in references(step.input) if (name := step_of(path)) is not None}
        except InvalidRequest as error:
            error.param = place
            raise
        if missing := sorted(set(others.values()) - all_needs[step.name]):
            raise InvalidRequest(f"it refers to the step `{missing[0]}`: name that in `needs`", param=place)
        for path, name in others.items():
            _check_output_field(path, by_name[name].task, place)


def _check_output_field(path: str, task: str, place: str) -> None:
    """Raise InvalidRequest if no output of the task can have the field after ``output`` in ``path``."""
    fields = _output_fields(task)
    field = path.split(".")[2:3]
    if fields is not None and field and field[0] not in fields:
        raise InvalidRequest(
            f"it refers to `{path}`, and an output of the task {task} has only {', '.join(sorted(fields))}", param=place
        )


@cache
def _output_fields(task: str) -> frozenset[str] | None:
    """Return the names that the first level of a task's outputs can have; None if it can have any."""
    spec = TASKS[task]
    schema = spec.output.model_json_schema(mode="serialization")
    if "properties" not in schema or schema.get("additionalProperties"):
        return None
    # Headrace adds these itself.
    added = ("policy", "files") if isinstance(spec, OwnTaskSpec) and spec.declared.with_context else ("policy",)
    return frozenset((*schema["properties"], *added))


def _answer_of(steps: Sequence[FlowStepBody]) -> FlowStepBody:
    needed = {name for step in steps for name in step.needs}
    last = [step for step in steps if step.name not in needed]
    marked = [step for step in steps if step.stream]
    if len(marked) > 1 or (marked and marked[0] not in last):
        raise InvalidRequest("`stream` marks one step that no other step needs", param="steps")
    if len(marked or last) > 1:
        names = ", ".join(step.name for step in last)[:300]
        raise InvalidRequest(
            f"several steps are last ({names}): mark the one with the answer by `stream`", param="steps"
        )
    return (marked or last)[0]
