"""Prompt templates of tenants: messages or a text in the language of jinja2, filled in with the values of a request.

    Template ──RenderedTemplate.of──▶ parsed, checked against the allowed parts of jinja2 ──fill──▶ FilledTemplate

Tenants write them, so a template may use only the parts of jinja2 below: the values, conditions, loops over lists and a
few filters. There is no arithmetic, no call, no assignment and no range, so a template can neither reach the process
nor repeat a text other than in a loop. Loops and filters look at the bounds of steps and of CPU time, comparisons at
that of CPU time, and the output has a bound of its own. A value is data: template text inside it stays as it is.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ConfigDict, Field, StringConstraints, model_validator

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.prompt_reference import MAX_VARIABLES, FilledTemplate, VariableName
from headrace.store.payloads.strict_model import MAX_TEXT_CHARS, Strict

MAX_STEPS = 10_000
"""Most iterations of all loops of a template together, and calls of filters."""

CPU_S = 0.5
"""Most CPU time for filling in a template, in seconds. A usual one takes a millisecond."""

_MAX_TAGS = 4_000
_MAX_NODES = 10_000
_BUDGET = "the budget"  # with a space, so that no template can name it

TemplateText = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]

_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem),
    *(nodes.If, nodes.For, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Filter, nodes.Test),
)
_FILTERS = ("default", "join", "length", "lower", "tojson", "trim", "upper")
_TESTS = ("defined", "undefined", "none")
_FAILURES = (TemplateError, TypeError, ValueError, LookupError, RecursionError)


class TemplateMessage(Strict):
    """A message that precedes those of the request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: TemplateText


class Template(Strict):
    """The content of a prompt version: ``instructions`` and ``messages`` of a conversation, or a raw ``text``.

    ``variables`` are names, each of a text that must be given, or a JSON schema of an object with all values. Every
    variable that is used must be declared. ``RenderedTemplate`` checks the texts: that may take a while.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"instructions": "You answer questions about {{ city }}.", "variables": ["city"]},
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": "Compare:\n{% for one in items %}- {{ one }}\n{% endfor %}",
                        }
                    ],
                    "variables": {
                        "type": "object",
                        "properties": {"items": {"type": "array", "items": {"type": "string"}, "maxItems": 8}},
                        "required": ["items"],
                    },
                },
            ]
        }
    )

    instructions: TemplateText | None = None
    messages: Annotated[tuple[TemplateMessage, ...], Field(max_length=64)] = ()
    text: TemplateText | None = None
    variables: Annotated[tuple[VariableName, ...], Field(max_length=MAX_VARIABLES)] | dict[str, Any] = ()

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if (self.text is None) == (self.instructions is None and not self.messages):
            raise ValueError("give `instructions`, `messages` or both, or else `text`")
        properties = self.variables.get("properties", {}) if isinstance(self.variables, dict) else {}
        if not isinstance(properties, dict) or len(properties) > MAX_VARIABLES:
            raise ValueError(f"`variables.properties` is an object with at most {MAX_VARIABLES} members")
        return self

    @property
    def schema_of_values(self) -> dict[str, Any]:
        """The JSON schema of the values: no value may be given that is not declared.

        If it does not say which values are ``required``, all without a ``default`` are.
        """
        if isinstance(self.variables, dict):
            properties = self.variables.get("properties", {})
            needed = [name for name, one in properties.items() if not (isinstance(one, dict) and "default" in one)]
            declared = {"type": "object", "required": needed, **self.variables}
        else:
            properties = {name: {"type": "string"} for name in self.variables}
            declared = {"type": "object", "required": list(self.variables)}
        return {**declared, "properties": properties, "additionalProperties": False}

    @property
    def content_digest(self) -> str:
        """SHA-256 of the template in its canonical form."""
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


class _TooLong(Exception):
    """The template makes too much of its values."""


class _Budget:
    """What is left for filling in one template."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._chars = MAX_TEXT_CHARS
        self._until = time.thread_time() + CPU_S

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise _TooLong(f"its loops and filters take over {MAX_STEPS} steps")
        self.look()

    def look(self) -> None:
        if time.thread_time() > self._until:
            raise _TooLong(f"it takes over {CPU_S} s")

    def write(self, num_chars: int) -> None:
        self._chars -= num_chars
        if self._chars < 0:
            raise _TooLong(f"it has over {MAX_TEXT_CHARS} characters")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox. A name after a point is a member of an object, never a method of Python's class."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a member of a JSON object, or of ``loop``."""
        return self.getitem(obj, attribute) if isinstance(obj, dict) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return a member of a JSON object, or an element of a list."""
        if isinstance(obj, dict):
            return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)


def _as_text(value: Any) -> Any:
    """Return a value as it stands in the text: what is no text as JSON."""
    return value if isinstance(value, str | Undefined) else json.dumps(value, ensure_ascii=False)


@pass_context
def _elements(context: Context, value: Any) -> Iterator[Any]:
    """Yield what a loop goes over, one step each."""
    if not isinstance(value, list):
        raise TemplateError("a loop goes over a list")
    for one in value:
        context[_BUDGET].step()
        yield one


@pass_context
def _operand(context: Context, value: Any) -> Any:
    """Return what a value is compared with: it may be a list that takes ten milliseconds to look through."""
    context[_BUDGET].look()
    return value


def _joined(values: Any, separator: str = "") -> str:
    if not isinstance(values, list):
        raise TemplateError("`join` takes a list")
    if len(values) * len(separator) > MAX_TEXT_CHARS:
        raise _TooLong(f"it has over {MAX_TEXT_CHARS} characters")
    return separator.join(map(_as_text, values))


def _bounded(name: str) -> Any:
    """Return a filter of this name that counts as a step."""
    plain: dict[str, Any] = {
        "join": _joined,
        "length": len,
        "lower": lambda value: str(_as_text(value)).lower(),
        "tojson": lambda value: json.dumps(value, ensure_ascii=False),
        "trim": lambda value: str(_as_text(value)).strip(),
        "upper": lambda value: str(_as_text(value)).upper(),
    }
    computed = plain[name]

    @pass_context
    def apply(context: Context, value: Any, *more: Any) -> Any:
        context[_BUDGET].step()
        if isinstance(value, Undefined):
            str(value)  # raises the error that names the variable
        return computed(value, *more)

    return apply


def _environment() -> _Environment:
    # Not HTML: escaping would change the prompt.
    environment = _Environment(
        autoescape=False, keep_trailing_newline=True, trim_blocks=True, undefined=StrictUndefined, finalize=_as_text
    )
    environment.globals.clear()
    own = {name: _bounded(name) for name in _FILTERS if name != "default"}
    environment.filters = {"default": environment.filters["default"], "elements": _elements, "operand": _operand, **own}
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    return environment


_ENVIRONMENT = _environment()


def _parsed(text: str, where: str, declared: Mapping[str, Any], most_nodes: int) -> tuple[nodes.Template, int]:
    """Parse a text of a template, and count its parts. Raises ValueError for what templates may not have."""
    try:
        tree = _ENVIRONMENT.parse(text)
    except (TemplateSyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ValueError(f"`{where}`{line}: {str(error)[:200]}") from None
    found = list(tree.find_all(nodes.Node))
    if len(found) > most_nodes:
        raise ValueError(f"with `{where}` the template has over {_MAX_NODES} parts: at most {_MAX_NODES} are accepted")
    for node in found:
        _check(node, where)
    if undeclared := sorted(find_undeclared_variables(tree) - set(declared)):
        raise ValueError(f"`{where}`: not declared in `variables`: {', '.join(undeclared)[:200]}")
    return tree, len(found)


def _check(node: nodes.Node, where: str) -> None:
    """Raise ValueError for a part of jinja2 that templates may not have; let loops and comparisons look at bounds."""
    if (found := _forbidden(node)) is not None:
        raise ValueError(f"`{where}`, line {node.lineno}: {found}")
    if isinstance(node, nodes.For):
        node.iter = nodes.Filter(node.iter, "elements", [], [], None, None, lineno=node.lineno)
    if isinstance(node, nodes.Operand):
        node.expr = nodes.Filter(node.expr, "operand", [], [], None, None, lineno=node.lineno)


def _forbidden(node: nodes.Node) -> str | None:
    """Return what is wrong with a part of a template, None if nothing is."""
    match node:
        case nodes.Filter():
            return _forbidden_filter(node)
        case nodes.Test() if node.name not in _TESTS or node.args:
            return f"no test `{node.name}`: use {', '.join(_TESTS)}"
        case nodes.For() if node.recursive or not isinstance(node.target, nodes.Name):
            return "a loop is `for NAME in LIST`"
        case nodes.Name(name="self"):
            return "`self` is no variable"
        case _ if isinstance(node, _NODES):
            return None
        case _:
            pass
    kind = type(node).__name__.lower()
    return f"no `{kind}` in prompt templates, only values, `if`, `for` over a list, and filters"


def _forbidden_filter(node: nodes.Filter) -> str | None:
    if node.name not in _FILTERS or node.node is None:
        return f"no filter `{node.name}`: use {', '.join(_FILTERS)}"
    is_written_out = all(isinstance(one, nodes.Const) for one in node.args)
    if node.kwargs or node.dyn_args or node.dyn_kwargs or not is_written_out:
        return "what a filter takes in brackets is written out, such as `join(', ')`"
    return None


class RenderedTemplate:
    """A template that is parsed and ready to be filled in, by any number of threads."""

    def __init__(self, template: Template) -> None:
        """Parse it, which may take a second. Raises InvalidRequest."""
        try:
            self._parse(template)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None

    def _parse(self, template: Template) -> None:
        self._roles = tuple(message.role for message in template.messages)
        texts = {"instructions": template.instructions, "text": template.text}
        texts |= {f"messages[{index}].content": one.content for index, one in enumerate(template.messages)}
        num_tags = sum(text.count(tag) for text in texts.values() if text for tag in ("{{", "{%", "{#"))
        if num_tags > _MAX_TAGS:
            raise ValueError(f"the template has {num_tags} tags: at most {_MAX_TAGS} are accepted")
        properties = template.schema_of_values["properties"]
        self._defaults = {
            name: one["default"] for name, one in properties.items() if isinstance(one, dict) and "default" in one
        }
        try:
            self._parts = {}
            left = _MAX_NODES
            for where, text in texts.items():
                if text is not None:
                    tree, num_nodes = _parsed(text, where, properties, left)
                    left -= num_nodes
                    self._parts[where] = _ENVIRONMENT.from_string(tree)
        except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise ValueError(f"the template cannot be compiled: {str(error)[:200]}") from None

    def fill(self, values: Mapping[str, Any]) -> FilledTemplate:
        """Return the template with these values, which match its schema.

        Raises InvalidRequest if the text gets too long, takes too many steps or needs a value that is not there.
        """
        if len(json.dumps(values)) > MAX_TEXT_CHARS:
            raise InvalidRequest(f"the values have over {MAX_TEXT_CHARS} characters", param="prompt.variables")
        budget = _Budget()
        given = {**self._defaults, **values, _BUDGET: budget}
        try:
            texts = {where: _written(part.generate(given), budget) for where, part in self._parts.items()}
        except _TooLong as error:
            raise InvalidRequest(
                f"the prompt cannot be made with these values: {error}: send shorter values", param="prompt.variables"
            ) from None
        except _FAILURES as error:
            raise InvalidRequest(
                f"the prompt cannot be made with these values: {str(error)[:200]}", param="prompt.variables"
            ) from None
        contents = [texts[f"messages[{index}].content"] for index in range(len(self._roles))]
        return FilledTemplate(
            texts.get("instructions"), tuple(zip(self._roles, contents, strict=True)), texts.get("text")
        )


def _written(pieces: Iterator[str], budget: _Budget) -> str:
    kept = []
    for piece in pieces:
        budget.write(len(piece))
        kept.append(piece)
    return "".join(kept)


@lru_cache(maxsize=256)
def rendered(stored: str) -> tuple[Template, RenderedTemplate]:
    """Return the template of a stored version, which is given as JSON. Raises InvalidRequest, because an
    earlier release allowed other texts.

    Versions never change, so what was parsed is kept.
    """
    template = Template.model_validate_json(stored)
    return template, RenderedTemplate(template)
