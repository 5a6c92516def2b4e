"""Models, as the API shows them: in the shape of OpenAI, with versions and aliases."""

from typing import Literal

from pydantic import BaseModel, Field

from store.payloads.sampling_params import SamplingDefaults
from store.registry.models import DEFAULT_ALIAS, ModelSummary
from store.tasks.registry import TASKS


class ModelObject(BaseModel):
    """What a model string means, as OpenAI shows a model, with the model's versions and aliases."""

    id: str = Field(description="what a request says as `model`: `name`, `name@alias` or `name@3`")
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headrace"
    task: str = Field(description=f"what jobs ask of it: {' or '.join(f'`{name}`' for name in TASKS)}")
    version: int = Field(description="the one that the id means now")
    aliases: dict[str, int]
    versions: list[int]


class ModelVersionObject(ModelObject):
    """What a model string means, and what is known of that version."""

    context_window: int
    dtype: str
    digest: str
    sampling: SamplingDefaults | None = Field(
        None,
        description="how tokens are chosen where a request does not say: by the version's record, else by the model's "
        "generation_config.json; null fields are as in the reference; null for models that make vectors",
    )


class ModelList(BaseModel):
    """Every model by its name, its aliases and its versions."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def model_objects(model: ModelSummary) -> list[ModelObject]:
    """Return the model under each string that means one of its versions: its name, its aliases, its versions."""
    aliases = {f"{model.name}@{alias}": version for alias, version in sorted(model.aliases.items())}
    versions = {f"{model.name}@{version}": version for version in model.versions}
    default = model.aliases.get(DEFAULT_ALIAS)
    named = {} if default is None else {model.name: default}
    ids = {name: version for name, version in (named | aliases | versions).items() if version in model.versions}
    return [model_object(model, name, version) for name, version in ids.items()]


def model_object(model: ModelSummary, name: str, version: int) -> ModelObject:
    """Return the model as OpenAI shows it, under a string that means one of its versions."""
    return ModelObject(
        id=name,
        created=int(model.created_at.timestamp()),
        task=model.task,
        version=version,
        aliases=model.aliases,
        versions=model.versions,
    )
