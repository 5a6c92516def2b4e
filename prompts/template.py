"""A model's chat template: messages in, the text that the model was trained to see out.

Templates come with the weights, so they run in jinja2's immutable sandbox: they see the messages and the names of the
special tokens, and nothing of the process. The settings are those that template authors write for (block trimming,
``raise_exception``, ``tojson`` that leaves text alone, ``strftime_now``, loop controls, the ``generation`` tag).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from store.errors import InvalidRequest, ModelLoadError
from store.payloads import ChatMessage


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's part for training; here it only passes its content through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).astimezone().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja2's own filter escapes HTML, which a model must not see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    # Not HTML: escaping would change the prompt.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_GenerationTag, loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


Render = Callable[[Sequence[ChatMessage]], str]


def compile_template(source: str, special_tokens: Mapping[str, str]) -> Render:
    """Return the function that renders messages and ends with the start of the assistant's turn.

    Raises ModelLoadError if the template does not parse. The returned function raises InvalidRequest when the
    template refuses the conversation (roles out of order, no system turn allowed, ...).
    """
    try:
        template = _environment().from_string(source)
    except TemplateError as error:
        raise ModelLoadError(f"the model's chat template does not parse: {error}") from error

    def render(messages: Sequence[ChatMessage]) -> str:
        turns = [{"role": message.role.value, "content": message.content} for message in messages]
        try:
            return template.render(
                messages=turns, tools=None, documents=None, add_generation_prompt=True, **special_tokens
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses this conversation: {error}", param="input.messages"
            ) from error

    return render
