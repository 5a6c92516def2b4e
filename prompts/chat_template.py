"""A model's chat template: messages in, the text that the model was trained to see out.

Templates come with the weights, so they run in jinja2's immutable sandbox: they see the messages and the names of the
special tokens, and nothing of the process. The settings are those that template authors write for (block trimming,
``raise_exception``, ``tojson`` that leaves text alone, ``strftime_now``, loop controls, the ``generation`` tag).

What a template knows of reasoning is found when it is read (``prompts.answer_reader``).

For templates without tools, tools are written as text, in our own JSON format: the functions and instructions are in
the system turn, a call is one JSON object on its own line, and results are in the user turn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.prompts.answer_reader import check_without_reasoning, find_support
from headrace.prompts.tool_calls import ToolCallReader, merged
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.conversation import ChatMessage, FunctionCall, FunctionSpec, Role, Tool, ToolCall
from headrace.store.payloads.reasoning import ReasoningOptions
from headrace.store.payloads.strict_model import MAX_TEXT_CHARS
from headrace.store.tasks.generate import ToolStyle

Turn = dict[str, Any]
Variables = Mapping[str, Any] | None
"""More variables for a template; ``store.payloads.template_variables`` has their bounds."""

_INSTRUCTIONS = """\
You can call functions. These are the functions, one JSON object a line:
{functions}

To call functions, answer with nothing but the calls, each a JSON object on a line of its own:
{{"name": <name of the function>, "arguments": <object with its arguments>}}
You are given their results then. If no function is of use, answer in your own words."""

# Without this a small model makes the same call again.
_AFTER_RESULTS = "Now answer the question in words, or call another function."

_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)

_PROBE_MARK = "headrace looks whether tools are shown"
_PROBE_ARGUMENTS = '{"probe": 1}'
_PROBE_SCHEMA = {"type": "object", "properties": {"probe": {"type": "integer", "description": "a number"}}}
_PROBE_TOOL = Tool(function=FunctionSpec(name="headrace_probe", description=_PROBE_MARK, parameters=_PROBE_SCHEMA))
_PROBE_CALL = ToolCall(id="probe0000", function=FunctionCall(name="headrace_probe", arguments=_PROBE_ARGUMENTS))
_PROBE = (
    ChatMessage(role=Role.USER, content="Call it."),
    ChatMessage(role=Role.ASSISTANT, tool_calls=(_PROBE_CALL,)),
    ChatMessage(role=Role.TOOL, tool_call_id="probe0000", content="1"),
)
_KEY_OF_STYLE = {
    ToolStyle.HERMES: f'"arguments": {_PROBE_ARGUMENTS}',
    ToolStyle.LLAMA3: f'"parameters": {_PROBE_ARGUMENTS}',
}


MAX_RENDERED_CHARS = 8 * MAX_TEXT_CHARS
"""Of a conversation's text: more than any window takes, and little beside what a template that repeats could make."""


def _bounded(pieces: Iterator[str]) -> str:
    """Return the pieces joined. Raises InvalidRequest as soon as they are too long together."""
    kept: list[str] = []
    left = MAX_RENDERED_CHARS
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise InvalidRequest(
                f"the model's chat template makes over {MAX_RENDERED_CHARS} characters of this conversation: send less",
                param="input.messages",
            )
        kept.append(piece)
    return "".join(kept)


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


class ChatTemplate:
    """A template, how its model writes calls (``tool_style``), and what it knows of reasoning (``reasoning``)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Read a template. Raises ModelLoadError if it does not parse."""
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ModelLoadError(f"the model's chat template does not parse: {error}") from error
        self._special_tokens = special_tokens
        self.tool_style = self._find_style()
        self._has_system = self._try([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) is not None
        user = [{"role": "user", "content": "u"}]
        self.reasoning = find_support(source, lambda variables: self._try(user, variables=variables))

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        variables: Variables = None,
        reasoning: ReasoningOptions | None = None,
    ) -> str:
        """Return the text of a conversation, which ends with the start of the assistant's turn.

        Raises InvalidRequest when the template refuses the conversation (roles out of order, no system turn, ...) or
        makes too long a text of it, and for reasoning that the model cannot do.
        """
        if self.reasoning is None:
            check_without_reasoning(reasoning)
        else:
            variables = {**(variables or {}), **self.reasoning.variables(reasoning)}
        functions = functions_of(tools) if self._shows_tools else []
        try:
            return self._render(self._turns(messages, tools), functions, variables)
        except _REFUSALS as error:
            raise InvalidRequest(
                f"the model's chat template refuses this conversation: {error}", param="input.messages"
            ) from error

    @property
    def _shows_tools(self) -> bool:
        return self.tool_style is not ToolStyle.JSON

    def _turns(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[Turn]:
        match self.tool_style:
            case ToolStyle.HERMES:
                return turns_of(messages)
            case ToolStyle.LLAMA3:
                return turns_of(one_call_a_turn(messages))
            case ToolStyle.JSON:
                return in_plain_json(messages, tools, has_system=self._has_system)

    def _render(self, turns: Sequence[Turn], functions: Sequence[Turn] = (), variables: Variables = None) -> str:
        ours = {
            "messages": turns,
            "tools": functions or None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
        }
        return _bounded(self._template.generate({**(variables or {}), **ours}))

    def _try(self, turns: Sequence[Turn], functions: Sequence[Turn] = (), variables: Variables = None) -> str | None:
        """Return the text of a conversation, None if the template refuses it."""
        try:
            return self._render(turns, functions, variables)
        except _REFUSALS:
            return None

    def _find_style(self) -> ToolStyle:
        """Let the template write a call, and see how it does; one that hides tools or calls knows neither."""
        text = self._try(turns_of(_PROBE), functions_of([_PROBE_TOOL])) or ""
        if _PROBE_MARK not in text:
            return ToolStyle.JSON
        for style in (ToolStyle.HERMES, ToolStyle.LLAMA3):
            reader = ToolCallReader(style, [_PROBE_TOOL.function.name])
            calls = merged([*reader.add(text), *reader.finish()]).calls
            if any(call.arguments == _PROBE_ARGUMENTS for call in calls) and _KEY_OF_STYLE[style] in text:
                return style
        return ToolStyle.JSON


def turns_of(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Return the messages as Hugging Face's templates expect them: arguments are objects, absent fields are absent.

    A result names the function that it comes from. Arguments that are no JSON object, as a model may write them, stay
    a text.
    """
    return [_turn(message) for message in _named(messages)]


def functions_of(tools: Sequence[Tool]) -> list[Turn]:
    """Return the tools as templates expect them; a function without parameters gets an empty object of them."""
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def one_call_a_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the conversation as if the model had made its calls one after the other and seen each one's result."""
    apart: list[ChatMessage] = []
    rest = iter(messages)
    for message in rest:
        calls = message.tool_calls or ()
        if len(calls) < 2:
            apart.append(message)
            continue
        # The results of all calls, in any order, are what follows.
        results = {result.tool_call_id: result for result in islice(rest, len(calls))}
        for number, call in enumerate(calls):
            content = message.content if number == 0 else None
            apart += [message.model_copy(update={"content": content, "tool_calls": (call,)}), results[call.id]]
    return apart


def in_plain_json(messages: Sequence[ChatMessage], tools: Sequence[Tool], *, has_system: bool) -> list[Turn]:
    """Return the conversation with functions, calls and results as text.

    The functions go into the system turn, or if the template has none (``has_system``) into the first one.
    """
    turns: list[Turn] = []
    for role, group in groupby(_named(messages), key=lambda message: message.role):
        if role is Role.TOOL:
            results = [f"Result of {message.name}:\n{message.content}" for message in group]
            turns.append({"role": "user", "content": "\n\n".join([*results, _AFTER_RESULTS])})
        else:
            turns += [
                {"role": role.value, "content": "\n".join(_lines(message)), **_reasoned(message)} for message in group
            ]
    return _instructed(turns, tools, has_system=has_system) if tools else turns


def _named(messages: Sequence[ChatMessage]) -> Iterator[ChatMessage]:
    """Yield the messages, each result with the name of the function that was called."""
    names: dict[str | None, str] = {}
    for message in messages:
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        is_nameless = message.role is Role.TOOL and message.name is None
        yield message.model_copy(update={"name": names[message.tool_call_id]}) if is_nameless else message


def _turn(message: ChatMessage) -> Turn:
    # Never absent: some templates join it to other text without a look.
    turn: Turn = {"role": message.role.value, "content": message.content or ""}
    turn |= _reasoned(message)
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls is not None:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _reasoned(message: ChatMessage) -> Turn:
    """Return the reasoning of an earlier answer, by the two names that templates know."""
    text = message.reasoning_content
    return {"reasoning_content": text, "thinking": text} if text else {}


def _call(call: ToolCall) -> Turn:
    function = {"name": call.function.name, "arguments": _arguments(call)}
    return {"id": call.id, "type": "function", "function": function}


def _arguments(call: ToolCall) -> dict[str, Any] | str:
    text = call.function.arguments
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _function(tool: Tool) -> Turn:
    function = tool.function
    described = {} if function.description is None else {"description": function.description}
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {"name": function.name, **described, "parameters": parameters}


def _lines(message: ChatMessage) -> Iterator[str]:
    if message.content is not None:
        yield message.content
    for call in message.tool_calls or ():
        yield json.dumps({"name": call.function.name, "arguments": _arguments(call)}, ensure_ascii=False)


def _instructed(turns: list[Turn], tools: Sequence[Tool], *, has_system: bool) -> list[Turn]:
    functions = [json.dumps(_function(tool), ensure_ascii=False) for tool in tools]
    text = _INSTRUCTIONS.format(functions="\n".join(functions))
    first = turns[0]
    if first["role"] == "system" or not has_system:
        return [first | {"content": f"{first['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]
