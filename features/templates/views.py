"""Models of prompt templates on the API: what requests store, and what answers show. No I/O."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from headrace.features.templates.prompt_template import Template
from headrace.producer_api.http.views import seconds
from headrace.store.payloads.prompt_reference import PromptUse, VariableName
from headrace.store.payloads.strict_model import Strict
from headrace.store.registry.prompt_templates import NAME_PATTERN, PromptVersion


def _is_no_id(name: str) -> str:
    if name.startswith("pmpt_"):
        raise ValueError("a name does not begin with `pmpt_`, as ids do")
    return name


PromptName = Annotated[str, StringConstraints(pattern=NAME_PATTERN), AfterValidator(_is_no_id)]


class NewPrompt(Template):
    """A template and its name, by which requests may refer to it; without one they use the id."""

    name: PromptName | Literal[""] = Field("", description="unique in the organization")


class PromptObject(Template):
    """One version of a prompt."""

    id: str
    object: Literal["prompt"] = "prompt"
    name: str
    version: int
    digest: str = Field(description="SHA-256 of the template")
    aliases: list[str] = Field(description="the aliases that name this version")
    created_at: int


class PromptList(BaseModel):
    """Prompts, or versions of one; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[PromptObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PromptDeleted(BaseModel):
    """A prompt that was deleted with all its versions."""

    id: str
    object: Literal["prompt"] = "prompt"
    deleted: Literal[True] = True


class PromptAlias(Strict):
    """What an alias is to name."""

    version: int = Field(strict=True, ge=1, description="number of the version")


class RenderRequest(Strict):
    """The values of a prompt's variables, and the model that it is rendered for."""

    model: str | None = Field(None, description="the model whose tokens are counted; null: only the messages are made")
    version: int | str | None = Field(None, description="number or alias; null: as in requests")
    variables: dict[VariableName, Any] = Field(default_factory=dict, description="the value of each variable")


class RenderedMessage(BaseModel):
    """A message as the model is given it."""

    role: str
    content: str


class RenderedPrompt(BaseModel):
    """A prompt with its values. Nothing was stored or computed."""

    object: Literal["prompt.rendered"] = "prompt.rendered"
    template: PromptUse = Field(description="the version that was filled in")
    messages: list[RenderedMessage] | None = Field(description="null for a raw text")
    text: str | None = Field(description="the text that the model reads; null without `model`, unless it is a raw text")
    input_tokens: int | None = Field(None, description="number of tokens; null without `model`")


def prompt_object(found: PromptVersion) -> PromptObject:
    """Return the object of a version."""
    template = Template.model_validate(found.template)
    fixed = {
        "id": found.id,
        "name": found.name,
        "version": found.version,
        "digest": template.content_digest,
        "aliases": list(found.aliases),
        "created_at": seconds(found.created_at),
    }
    return PromptObject.model_validate(found.template | fixed)


def prompt_list(found: list[PromptVersion], limit: int) -> PromptList:
    """Return a page of prompts; ``found`` has up to ``limit + 1`` of them."""
    data = [prompt_object(one) for one in found[:limit]]
    ids = [one.id for one in data]
    return PromptList(
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(found) > limit,
    )
