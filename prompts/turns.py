"""Converts a conversation to the messages that chat templates expect, with tools also for templates without tools.

For those templates, tools are written as text, in our own JSON format: the functions and instructions are in the system
turn, a call is one JSON object on its own line, and results are in the user turn.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

from store.payloads.conversation import ChatMessage, Role, Tool, ToolCall

Turn = dict[str, Any]

_INSTRUCTIONS = """\
You can call functions. These are the functions, one JSON object a line:
{functions}

To call functions, answer with nothing but the calls, each a JSON object on a line of its own:
{{"name": <name of the function>, "arguments": <object with its arguments>}}
You are given their results then. If no function is of use, answer in your own words."""

# Without this a small model makes the same call again.
_AFTER_RESULTS = "Now answer the question in words, or call another function."


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
            turns += [{"role": role.value, "content": "\n".join(_lines(message))} for message in group]
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
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls is not None:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


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
