"""Response models of models: OpenAI's format with versions and aliases, and Anthropic's."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field

from headrace.prompts.answer_reader import ReasoningSupport
from headrace.store.payloads.reasoning import ReasoningEffort
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry.engine_spec import EngineKind, Modality
from headrace.store.registry.models import DEFAULT_ALIAS, ModelSummary
from headrace.store.tasks.registry import TASKS


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
    root: str = Field(description="the model's name; a name that vLLM's clients read")
    parent: str | None = Field(
        None,
        description="the base `name@3` of a LoRA adapter; null: it is no adapter. A name that vLLM's clients read",
    )
    max_model_len: int = Field(description="the context window in tokens, by the name that vLLM's clients read")
    context_length: int = Field(description="the context window in tokens, by the name that OpenRouter's clients read")
    engine: str = Field(description="what runs this version: `native`, or a server: `vllm`, `sglang`, `openai`")


class ReasoningAbilities(BaseModel):
    """What requests can ask of a model that reasons, as its chat template says."""

    default: bool = Field(description="whether it reasons if a request does not say")
    efforts: list[ReasoningEffort] = Field(description="the efforts that a request may ask for")
    levels: list[ReasoningEffort] = Field(
        description="the efforts that the template knows; if there are none, an effort is a share of `max_tokens`"
    )


class ModelVersionObject(ModelObject):
    """A model with the properties of the version that its id means."""

    context_window: int
    dtype: str
    digest: str
    batch_invariant: bool | None = Field(
        None, description="of a server: whether each answer is independent of the others in its batch"
    )
    accepts: tuple[Modality, ...] = Field((), description="what messages may have beside text")
    sampling: SamplingDefaults | None = Field(
        None,
        description="sampling defaults: from the version's record, else from the model's "
        "generation_config.json; null fields have the API's defaults; null for models without text output",
    )
    reasoning: ReasoningAbilities | None = Field(
        None, description="null: the model does not reason, or only its server knows"
    )


class ModelList(BaseModel):
    """All models by name, alias and version."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class AnthropicModel(BaseModel):
    """A model in Anthropic's format."""

    type: Literal["model"] = "model"
    id: str = Field(description="value of `model` in requests: `name`, `name@alias` or `name@3`")
    display_name: str = Field(description="the id")
    created_at: str = Field(description="when it was registered, RFC 3339")
    lifecycle: Literal["active"] = "active"


class AnthropicModelList(BaseModel):
    """A page of models in Anthropic's format."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def reasoning_abilities(support: ReasoningSupport | None) -> ReasoningAbilities | None:
    """Return the abilities of a model, None if it does not reason."""
    if support is None:
        return None
    return ReasoningAbilities(default=support.is_default, efforts=[*support.efforts], levels=[*support.levels])


def anthropic_model(model: ModelObject) -> AnthropicModel:
    """Return the model in Anthropic's format."""
    created_at = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    return AnthropicModel(id=model.id, display_name=model.id, created_at=created_at)


def anthropic_models(
    models: Sequence[ModelObject], limit: int, after_id: str | None, before_id: str | None
) -> AnthropicModelList:
    """Return a page: the first models after an id, or the last ones before an id. An unknown id gives no models."""
    ids = [model.id for model in models]
    if before_id is not None:
        before = models[: ids.index(before_id)] if before_id in ids else []
        page, has_more = before[-limit:], len(before) > limit
    else:
        start = 0 if after_id is None else ids.index(after_id) + 1 if after_id in ids else len(ids)
        page, has_more = models[start : start + limit], len(ids) > start + limit
    return AnthropicModelList(
        data=[anthropic_model(model) for model in page],
        has_more=has_more,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


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
        root=model.name,
        parent=model.bases.get(version),
        max_model_len=model.context_windows[version],
        context_length=model.context_windows[version],
        engine=model.engines.get(version, EngineKind.NATIVE),
    )
