"""How a request names a prompt template, what the template makes, and how its job records the version."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictInt, StringConstraints, model_validator

from headrace.store.payloads.conversation import ChatMessage
from headrace.store.payloads.strict_model import Strict

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]

MAX_VARIABLES = 64


class PromptReference(Strict):
    """A prompt template, its version and the values of its variables.

    ``id`` is the prompt's id or name; ``name@2`` and ``name@alias`` name the version too. Without a version it is the
    one of the alias ``default``, else the newest.
    """

    id: Annotated[str, StringConstraints(min_length=1, max_length=300)] = Field(
        description="id or name of the prompt; `name@2` and `name@alias` name a version too"
    )
    version: StrictInt | Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="number or alias; null: that of the alias `default`, else the newest"
    )
    variables: Annotated[dict[VariableName, Any], Field(max_length=MAX_VARIABLES)] | None = Field(
        None, description="the value of each variable that the template declares"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_fields(cls, value: Any) -> Any:
        """Complain of one unknown field, not of each: no list of a body makes many complaints."""
        others = (name for name in value if name not in cls.model_fields) if isinstance(value, dict) else ()
        if (other := next(iter(others), None)) is not None:
            raise ValueError(f"unknown field {str(other)[:64]!r}: a prompt has `id`, `version` and `variables`")
        return value


class PromptUse(Strict):
    """The version of a prompt template that a job's input was made from. ``digest``: SHA-256 of the template."""

    id: str
    name: str
    version: int
    digest: str


class DefaultTemplate(PromptUse):
    """The messages that come before those of a request for a version, and the prompt that they were made from.

    A version keeps this copy from its registration on, so it outlives the prompt. It stands in the registry, which
    belongs to no tenant.
    """

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]

    @property
    def use(self) -> PromptUse:
        """What a job records of it."""
        return PromptUse(id=self.id, name=self.name, version=self.version, digest=self.digest)


@dataclass(frozen=True, slots=True)
class FilledTemplate:
    """A template with its values; ``messages`` are (role, text). ``text`` is None unless it is a raw text."""

    instructions: str | None
    messages: tuple[tuple[str, str], ...]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TemplatePlace:
    """Where a conversation has the messages of its prompt template, which truncation keeps.

    ``head``: how many messages at the beginning stay. ``tail``: how many at the end; they are those of a response that
    goes on, behind the conversation so far.
    """

    head: int
    tail: int = 0
