"""How orders of diffusion models are checked and counted: what pictures and videos share."""

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from headrace.features.diffusion.model_folder import check_folder
from headrace.features.diffusion.pictures import MAX_PICTURES, MAX_PIXELS, MAX_SEED, DiffusionOrder
from headrace.prompts.tasks.own_task import num_tokens_of
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, ReadFile, TaskInputs
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.tasks.own_task import OwnTaskSpec

if TYPE_CHECKING:
    from headrace.store.registry.models import ModelVersion

Filled: TypeAlias = Callable[[Any, InputModel], Any]
"""Returns an order with all that it leaves out. Raises InvalidRequest for what the model cannot make."""


def left_out(order: DiffusionOrder, facts: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return what an order leaves out, by the facts of the version. Raises InvalidRequest for a size it cannot make."""
    width, height = size
    if width % facts.multiple or height % facts.multiple:
        near = "x".join(str(max(1, round(one / facts.multiple)) * facts.multiple) for one in size)
        raise InvalidRequest(
            f"the size {width}x{height} is not possible: the model needs multiples of {facts.multiple}, such as {near}",
            param="input.size",
        )
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"the size {width}x{height} has {width * height} pixels, and {MAX_PIXELS} are made at most",
            param="input.size",
        )
    defaults = facts.defaults
    return {
        "size": f"{width}x{height}",
        "steps": order.steps or defaults.steps,
        "guidance": defaults.guidance if order.guidance is None else order.guidance,
        "negative_prompt": order.negative_prompt or defaults.negative_prompt,
        "seed": secrets.randbelow(MAX_SEED - MAX_PICTURES) if order.seed is None else order.seed,
    }


def preparing(spec: OwnTaskSpec, filled: Filled) -> Callable[[JobOrder, InputModel, PinnedPolicy | None], Prepared]:
    """Return how requests of a task become payloads and costs."""

    def prepare(request: JobOrder, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
        order = filled(request.input, model)
        return Prepared(spec.payload(input=order, policy=policy), num_tokens_of(spec, order))

    return prepare


def order_inputs(
    spec: OwnTaskSpec, filled: Filled, settings_of: Callable[[Mapping[str, bytes]], Any], fake: Any, **own: Any
) -> TaskInputs[Any]:
    """Return the inputs of a task with models of its own. ``settings_of``: the facts of a folder, ``fake`` without."""

    def check(request: JobOrder, model: InputModel) -> JobOrder:
        filled(request.input, model)
        return request

    def settings_for(version: "ModelVersion", read_file: ReadFile) -> Any:
        return fake if version.is_fake else settings_of({name: read_file(one) for name, one in version.files.items()})

    def window(files: Mapping[str, bytes]) -> int:
        settings_of(files)
        return spec.declared.most_tokens

    return TaskInputs(
        spec=spec,
        prepare=preparing(spec, filled),
        cut_to_length=check,
        is_quick=lambda _request, _model: True,
        read_settings=settings_for,
        check_folder=check_folder,
        folder_window=window,
        has_any_files=True,
        has_tokenizer=lambda _config: False,
        **own,
    )
