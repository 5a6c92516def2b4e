"""Requests for tasks of other packages: the package's schema has checked the input, and its own function counts it."""

from typing import Any

from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs, no_folder, no_settings
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.tasks.own_task import OwnTaskSpec


def own_inputs(spec: OwnTaskSpec) -> TaskInputs[Any]:
    """Return how requests of a task are prepared."""

    def prepare(request: JobOrder, _model: InputModel, policy: PinnedPolicy | None) -> Prepared:
        return Prepared(spec.payload(input=request.input, policy=policy), num_tokens_of(spec, request.input))

    def check(request: JobOrder, _model: InputModel) -> JobOrder:
        num_tokens_of(spec, request.input)
        return request

    return TaskInputs(
        spec=spec,
        prepare=prepare,
        cut_to_length=check,
        is_quick=lambda _request, _model: True,
        read_settings=no_settings,
        is_folder=no_folder,
        has_any_files=True,
        has_tokenizer=lambda _config: False,
    )


def num_tokens_of(spec: OwnTaskSpec, given: Any) -> int:
    """Return the cost of an input, at least 1. Raises InvalidRequest for one that costs more than the task allows."""
    task = spec.declared
    num_tokens = max(1, int(task.count_tokens(given)))
    if num_tokens > task.most_tokens:
        raise InvalidRequest(
            f"the input costs {num_tokens} tokens, and the task {spec.name} takes at most {task.most_tokens}",
            code="context_length_exceeded",
            param="input",
        )
    return num_tokens
