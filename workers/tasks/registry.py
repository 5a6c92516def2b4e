"""How each task's models are loaded: of the core's, of features (the files ``model``) and of other packages."""

from collections.abc import Mapping
from functools import partial

from headrace.assembly import parts
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.generate import GENERATE
from headrace.store.tasks.registry import OWN_TASKS, known_task
from headrace.workers.tasks.generate import load_generate_model
from headrace.workers.tasks.own_task import load_own_model
from headrace.workers.tasks.task_model import LoadModel, ModelPart

MODEL_LOADERS: Mapping[str, LoadModel] = {
    GENERATE.name: load_generate_model,
    **{task.name: partial(load_own_model, task) for task in OWN_TASKS if not task.served_by},
    **{part.task.name: part.load for part in parts("model", ModelPart)},
}


def loader_of(version: ModelVersion) -> LoadModel:
    """Return what loads a version. Raises CannotLoadHere if the package of its task is not installed here."""
    return MODEL_LOADERS[known_task(version.task).name]
