"""How a request names a prompt template, and how its job records the version that was filled in."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictInt, StringConstraints, model_validator

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


@dataclass(frozen=True, slots=True)
class TemplatePlace:
    """Where a conversation has the messages of its prompt template, which truncation keeps.

    ``head``: how many messages at the beginning stay. ``tail``: how many at the end; they are those of a response that
    goes on, behind the conversation so far.
    """

    head: int
    tail: int = 0
