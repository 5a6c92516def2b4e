"""Prompt templates: instructions and messages with variables, written ``{{name}}``, filled from a request.

Values are inserted literally: a ``{{name}}`` inside a value is not replaced. No I/O.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from store.errors import InvalidRequest
from store.payloads.strict_model import MAX_TEXT_CHARS, Strict

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")

TemplateText = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class TemplateMessage(Strict):
    """A message that precedes those of the request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: TemplateText


class Template(Strict):
    """The content of a prompt version. Every ``{{name}}`` must be declared in ``variables``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"instructions": "You answer questions about {{city}}.", "variables": ["city"]}]
        }
    )

    instructions: TemplateText | None = None
    messages: Annotated[tuple[TemplateMessage, ...], Field(max_length=64)] = ()
    variables: Annotated[tuple[VariableName, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _declares_what_it_uses(self) -> Self:
        if self.instructions is None and not self.messages:
            raise ValueError("give `instructions`, `messages` or both")
        texts = [self.instructions or "", *(message.content for message in self.messages)]
        used = {name for text in texts for name in _PLACEHOLDER.findall(text)}
        if undeclared := sorted(used - set(self.variables)):
            raise ValueError(f"not declared in `variables`: {', '.join(undeclared)}")
        return self


@dataclass(frozen=True, slots=True)
class FilledTemplate:
    """A template after substitution; ``messages`` are (role, text)."""

    instructions: str | None
    messages: tuple[tuple[str, str], ...]


def _check_size(texts: Sequence[str], values: Mapping[str, str]) -> None:
    """Raise InvalidRequest if the filled template would be too long."""
    uses = Counter(name for text in texts for name in _PLACEHOLDER.findall(text))
    num_chars = sum(map(len, texts)) + sum(num * len(values[name]) for name, num in uses.items())
    if num_chars > MAX_TEXT_CHARS:
        raise InvalidRequest(
            f"the prompt with its values has about {num_chars} characters, and {MAX_TEXT_CHARS} are accepted: send "
            "shorter values",
            param="prompt.variables",
        )


def fill(stored: Mapping[str, Any], values: Mapping[str, str]) -> FilledTemplate:
    """Fill in the values; raise InvalidRequest if they do not match the variables or the text is too long."""
    template = Template.model_validate(stored)
    declared = set(template.variables)
    if missing := sorted(declared - values.keys()):
        raise InvalidRequest(f"the prompt needs a value for {', '.join(missing)}", param="prompt.variables")
    if unknown := sorted(values.keys() - declared):
        raise InvalidRequest(f"the prompt has no variable {unknown[0][:64]}", param="prompt.variables")
    _check_size([template.instructions or "", *(message.content for message in template.messages)], values)

    def put(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    return FilledTemplate(
        instructions=None if template.instructions is None else put(template.instructions),
        messages=tuple((message.role, put(message.content)) for message in template.messages),
    )
