"""Items of OpenAI's Responses API: parsed from requests, stored, and converted to chat messages.

    request                 ──▶ stored, with an id        ──▶ messages for the model
    "hi"                        message                       user: hi
    message                     message                       role: its text
    function_call               function_call                 assistant, with its calls
    function_call_output        function_call_output          tool: the result of one call

Only text and function calls are supported; anything else is refused.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict

from store.errors import InvalidRequest
from store.ids import new_id
from store.payloads.strict_model import Body

Item = dict[str, Any]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text", "text")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


class ContentPart(Body):
    """A part of a message or of a function's result; only text is supported."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None


class InputItem(Body):
    """An item of a conversation; without a ``type`` it is a message."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str | None = None
    role: str | None = None
    content: str | tuple[ContentPart, ...] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | tuple[ContentPart, ...] | None = None


Input = str | tuple[InputItem, ...]


def read_items(given: Input, param: str = "input") -> list[Item]:
    """Return the items with new ids; raise InvalidRequest that names the first unsupported one."""
    if isinstance(given, str):
        return [message("user", given)]
    return [_read(item, f"{param}[{index}]") for index, item in enumerate(given)]


def message(role: str, text: str) -> Item:
    """Return a message item."""
    content: Item = {"type": "input_text", "text": text}
    if role == "assistant":
        content = {"type": "output_text", "text": text, "annotations": []}
    return _item("message", role=role, content=[content])


def _item(kind: str, **fields: Any) -> Item:
    return {"id": new_id(_PREFIXES[kind]), "type": kind, "status": "completed", **fields}


def _read(item: InputItem, param: str) -> Item:
    match item.type or "message":
        case "message":
            role = _required(item.role, f"{param}.role")
            if role not in _ROLES:
                raise _unsupported(f"{param}.role", role, ", ".join(_ROLES))
            return message(role, _text(item.content, f"{param}.content"))
        case "function_call":
            return _item(
                "function_call",
                call_id=_required(item.call_id, f"{param}.call_id"),
                name=_required(item.name, f"{param}.name"),
                arguments=_required(item.arguments, f"{param}.arguments"),
            )
        case "function_call_output":
            call_id = _required(item.call_id, f"{param}.call_id")
            return _item("function_call_output", call_id=call_id, output=_text(item.output, f"{param}.output"))
        case other:
            raise _unsupported(f"{param}.type", other, ", ".join(_PREFIXES))


def _text(content: str | tuple[ContentPart, ...] | None, param: str) -> str:
    if isinstance(content, str):
        return content
    parts = _required(content, param)
    for index, part in enumerate(parts):
        if part.type not in _TEXTS or part.text is None:
            raise _unsupported(f"{param}[{index}].type", part.type, "text alone")
    return "".join(part.text or "" for part in parts)


def _required(value: Any, param: str) -> Any:
    if value is None:
        raise InvalidRequest(f"`{param}` is required", param=param)
    return value


def _unsupported(param: str, value: str, known: str) -> InvalidRequest:
    message = f"`{param}` {value[:40]!r} is not supported: {known}"
    return InvalidRequest(message, code="unsupported_parameter", param=param)


def messages_of(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the conversation as messages of ``store.payloads.conversation``.

    Instructions and leading system messages are merged: many chat templates accept only one system message.
    """
    made: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for item in items:
        turn = _message(item)
        if turn is None:
            continue
        last = made[-1] if made else None
        if last is not None and len(made) == 1 and last["role"] == turn["role"] == "system":
            last["content"] += f"\n\n{turn['content']}"
        elif last is not None and last["role"] == turn["role"] == "assistant" and "tool_calls" in {**last, **turn}:
            _join(last, turn)
        else:
            made.append(turn)
    return made


def _join(last: dict[str, Any], turn: dict[str, Any]) -> None:
    """Merge the assistant's text and tool calls into one message: tool results must follow the calls."""
    if "tool_calls" in turn:
        last.setdefault("tool_calls", []).extend(turn["tool_calls"])
    if "content" in turn:
        last["content"] = "\n".join(filter(None, [last.get("content"), turn["content"]]))


def _message(item: Item) -> dict[str, Any] | None:
    match item["type"]:
        case "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            return {"role": "assistant", "tool_calls": [{"id": item["call_id"], "function": function}]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
        case _:
            role = _ROLES[item["role"]]
            text = "".join(part["text"] for part in item["content"])
            # An empty answer is dropped.
            return {"role": role, "content": text} if text or role != "assistant" else None
