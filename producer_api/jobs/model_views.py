"""Response models of models: OpenAI's format, with versions and aliases."""

from typing import Literal

from pydantic import BaseModel, Field

from store.payloads.sampling_params import SamplingDefaults
from store.registry.engine_spec import EngineKind
from store.registry.models import DEFAULT_ALIAS, ModelSummary
from store.tasks.registry import TASKS


class ModelObject(BaseModel):
    """A model in OpenAI's format, with its versions and aliases."""

    id: str = Field(description="value of `model` in requests: `name`, `name@alias` or `name@3`")
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headrace"
    task: str = Field(description=f"its task: {' or '.join(f'`{name}`' for name in TASKS)}")
    version: int = Field(description="the version that the id means now")
    aliases: dict[str, int]
    versions: list[int]
    engine: str = Field(description="what runs this version: `native`, or a server: `vllm`, `sglang`, `openai`")


class ModelVersionObject(ModelObject):
    """A model with the properties of the version that its id means."""

    context_window: int
    dtype: str
    digest: str
    batch_invariant: bool | None = Field(
        None, description="of a server: whether each answer is independent of the others in its batch"
    )
    sampling: SamplingDefaults | None = Field(
        None,
        description="sampling defaults: from the version's record, else from the model's "
        "generation_config.json; null fields have the API's defaults; null for models without text output",
    )


class ModelList(BaseModel):
    """All models by name, alias and version."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def model_objects(model: ModelSummary) -> list[ModelObject]:
    """Return the model once per string that means one of its versions: name, aliases, versions."""
    aliases = {f"{model.name}@{alias}": version for alias, version in sorted(model.aliases.items())}
    versions = {f"{model.name}@{version}": version for version in model.versions}
    default = model.aliases.get(DEFAULT_ALIAS)
    named = {} if default is None else {model.name: default}
    ids = {name: version for name, version in (named | aliases | versions).items() if version in model.versions}
    return [model_object(model, name, version) for name, version in ids.items()]


def model_object(model: ModelSummary, name: str, version: int) -> ModelObject:
    """Return the model in OpenAI's format, with this string as its id."""
    return ModelObject(
        id=name,
        created=int(model.created_at.timestamp()),
        task=model.task,
        version=version,
        aliases=model.aliases,
        versions=model.versions,
        engine=model.engines.get(version, EngineKind.NATIVE),
    )
