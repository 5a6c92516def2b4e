"""The inputs of every task: of the core's, of features (the files ``inputs``) and of other packages."""

from collections.abc import Mapping
from typing import Any

from headrace.assembly import parts
from headrace.prompts.tasks.generate import GENERATE_INPUTS
from headrace.prompts.tasks.own_task import own_inputs
from headrace.prompts.tasks.task_inputs import TaskInputs
from headrace.store.errors import ModelLoadError
from headrace.store.tasks.own_task import OWN_TASK_ADVICE
from headrace.store.tasks.registry import OWN_TASKS

# No folder is one of two features. Generating takes every folder that they leave, and its class is checked then.
_INPUTS: tuple[TaskInputs[Any], ...] = (*parts("inputs", TaskInputs), GENERATE_INPUTS)

TASK_INPUTS: Mapping[str, TaskInputs[Any]] = {
    inputs.spec.name: inputs  # a feature whose task is declared as those of packages may have inputs of its own
    for inputs in (*map(own_inputs, OWN_TASKS), *_INPUTS)
}


def inputs_of_folder(config: Mapping[str, Any]) -> TaskInputs[Any]:
    """Return the inputs of the task that a model folder with this ``config.json`` serves.

    Raises ModelLoadError, with the way out, for a class of model that no task computes.
    """
    inputs = next(inputs for inputs in _INPUTS if inputs.is_folder(config))
    name = str(next(iter(config.get("architectures") or ()), ""))
    unfit = inputs.unfit_classes
    if unfit is not None and unfit.search(name):
        raise ModelLoadError(f"config.json names the class {name}, for which Headrace has no task; {OWN_TASK_ADVICE}")
    return inputs
