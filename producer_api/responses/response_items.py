"""Items of OpenAI's Responses API: as callers send them, as they are stored and shown again, and as messages.

    what is sent            ──▶ stored, with an id        ──▶ the conversation that the model sees
    "hi"                        message                       user: hi
    message                     message                       role: its text
    function_call               function_call                 assistant, with its calls
    function_call_output        function_call_output          tool: the result of one call

Only text and function calls are understood; whatever else would be lost is refused.
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
    """A piece of a message or of a function's result; only text is understood."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None


class InputItem(Body):
    """Something of a conversation; without a ``type`` it is a message."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str | None = None
    role: str | None = None
    content: str | tuple[ContentPart, ...] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | tuple[ContentPart, ...] | None = None


Input = str | tuple[InputItem, ...]


def read_items(asked: Input, param: str = "input") -> list[Item]:
    """Return the items with ids of their own; raise InvalidRequest that names the first that is not understood."""
    if isinstance(asked, str):
        return [message("user", asked)]
    return [_read(item, f"{param}[{index}]") for index, item in enumerate(asked)]


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

    Instructions and system messages at the beginning are one message, because many chat templates take no second one.
    """
    made: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for item in items:
        said = _message(item)
        if said is None:
            continue
        last = made[-1] if made else None
        if last is not None and len(made) == 1 and last["role"] == said["role"] == "system":
            last["content"] += f"\n\n{said['content']}"
        elif last is not None and last["role"] == said["role"] == "assistant" and "tool_calls" in {**last, **said}:
            _join(last, said)
        else:
            made.append(said)
    return made


def _join(last: dict[str, Any], said: dict[str, Any]) -> None:
    """Make one turn of what the assistant said and what it called: results follow the turn with the calls."""
    if "tool_calls" in said:
        last.setdefault("tool_calls", []).extend(said["tool_calls"])
    if "content" in said:
        last["content"] = "\n".join(filter(None, [last.get("content"), said["content"]]))


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
            # An answer of nothing is no turn.
            return {"role": role, "content": text} if text or role != "assistant" else None
