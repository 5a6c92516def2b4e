"""Items of OpenAI's Responses API: parsed from requests, stored, and converted to chat messages.

    request                 ──▶ stored, with an id        ──▶ messages for the model
    "hi"                        message                       user: hi
    message                     message                       role: its text
    function_call               function_call                 assistant, with its calls
    function_call_output        function_call_output          tool: the result of one call
    reasoning                   reasoning                     assistant: the reasoning of the next item
    file_search_call            file_search_call              nothing: its passages were of that answer
    mcp_call                    mcp_call                      assistant, with its call; tool: its result
    mcp_list_tools              mcp_list_tools                nothing
    mcp_approval_response       mcp_approval_response         nothing: it lets a call of the previous answer begin
    item_reference              the item of an answer         as that item

Only text, images of the user, calls and searches in files are supported; anything else is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, StrictBool

from headrace.features.openai.foreign_fields import not_text
from headrace.features.openai.message_parts import ImagePart, joined
from headrace.features.responses.answered_calls import ITEM
from headrace.features.responses.mcp_approvals import ASKED
from headrace.features.responses.response_tools import flat_name
from headrace.store.errors import InvalidRequest
from headrace.store.ids import new_id
from headrace.store.payloads.strict_model import Body
from headrace.store.payloads.tool_approval import MOST_REASON_CHARS

Item = dict[str, Any]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_IMAGE = "input_image"
_OF_IMAGE = ("image_url", "file_id", "detail")
_NO_NAME = re.compile("[^A-Za-z0-9_-]")
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "file_search_call": "fs",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    ITEM: "mcpa",
}


class ContentPart(Body):
    """A part of a message, of a function's result or of reasoning: text, a refusal of the assistant, or an image."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = Field(None, description="of an `input_image`: an https URL, or one with the data")
    file_id: str | None = Field(None, description="of an `input_image`: an uploaded file, instead of the URL")
    detail: str | None = Field(None, description="of an `input_image`: auto, low or high")


class InputItem(Body):
    """An item of a conversation; without a ``type`` it is a message, or with an ``id`` alone an ``item_reference``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: str | tuple[ContentPart, ...] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = Field(None, description="of a function call: the namespace of the function")
    arguments: str | None = None
    output: str | tuple[ContentPart, ...] | None = None
    summary: tuple[ContentPart, ...] | None = Field(None, description="of a reasoning item")
    queries: tuple[str, ...] | None = Field(None, description="of a search in files")
    server_label: str | None = Field(None, description="of a call that the server made, or of a list of tools")
    error: Any = Field(None, description="of a call that the server made and that failed")
    tools: Any = Field(None, description="of a list of tools; not read")
    approval_request_id: str | None = Field(None, description="of an `mcp_approval_response`: what it answers")
    approve: StrictBool | None = Field(None, description="of an `mcp_approval_response`: true lets the call be made")
    reason: str | None = Field(
        None, max_length=MOST_REASON_CHARS, description="of an `mcp_approval_response` that refuses: for the model"
    )

    @property
    def reference(self) -> str | None:
        """The id of the item that this one stands for."""
        is_bare = self.type is None and self.role is None and self.content is None
        return self.id if self.type == "item_reference" or is_bare else None


Input = str | tuple[InputItem, ...]


def references_of(given: Input | None) -> dict[str, str]:
    """Return the ids of items that the input refers to, each with the name of its first place."""
    found: dict[str, str] = {}
    for index, item in enumerate(given if isinstance(given, tuple) else ()):
        if item.reference is not None:
            found.setdefault(item.reference, f"input[{index}].id")
    return found


def read_items(given: Input, referenced: Mapping[str, Item], param: str = "input") -> list[Item]:
    """Return the items with new ids; raise InvalidRequest that names the first unsupported one.

    ``referenced``: the items of ``references_of``, which keep their ids.
    """
    if isinstance(given, str):
        return [message("user", given)]
    return [_read(item, referenced, f"{param}[{index}]") for index, item in enumerate(given)]


def message(role: str, text: str) -> Item:
    """Return a message item."""
    content: Item = {"type": "input_text", "text": text}
    if role == "assistant":
        content = {"type": "output_text", "text": text, "annotations": []}
    return _item("message", role=role, content=[content])


def images_in(items: Sequence[Item]) -> Iterator[tuple[str, ImagePart]]:
    """Yield the images of messages, each behind its place in ``items``."""
    for index, item in enumerate(items):
        for number, part in enumerate(item["content"] if item["type"] == "message" else ()):
            if isinstance(found := _part(part), ImagePart):
                yield f"items[{index}].content[{number}]", found


def _message_item(role: str, content: str | tuple[ContentPart, ...] | None, param: str) -> Item:
    """Return a message item; the texts of one without images are one part, as ``message`` makes it."""
    has_images = role == "user" and isinstance(content, tuple) and any(part.type == _IMAGE for part in content)
    if not has_images or not isinstance(content, tuple):
        return message(role, _text("" if content is None and role == "assistant" else content, param))
    parts: list[Item] = []
    for index, part in enumerate(content):
        if part.type != _IMAGE:
            parts.append({"type": "input_text", "text": _text((part,), param, index)})
            continue
        fields = {name: value for name in _OF_IMAGE if (value := getattr(part, name)) is not None}
        if fields.keys() in ({"detail"}, set()):
            where = f"{param}[{index}].image_url"
            raise InvalidRequest(f"`{where}` is required, or a `file_id`", param=where)
        parts.append({"type": _IMAGE, "detail": "auto", **fields})
    return _item("message", role=role, content=parts)


def _item(kind: str, **fields: Any) -> Item:
    return {"id": new_id(_PREFIXES[kind]), "type": kind, "status": "completed", **fields}


def _read(item: InputItem, referenced: Mapping[str, Item], param: str) -> Item:
    if item.reference is not None:
        if item.reference not in referenced:
            raise _unsupported(f"{param}.type", "item_reference", "send the item itself")
        return referenced[item.reference]
    match item.type or "message":
        case "message":
            role = _required(item.role, f"{param}.role")
            if role not in _ROLES:
                raise _unsupported(f"{param}.role", role, ", ".join(_ROLES))
            return _message_item(role, item.content, f"{param}.content")
        case "function_call":
            return _item(
                "function_call",
                call_id=_required(item.call_id, f"{param}.call_id"),
                name=_required(item.name, f"{param}.name"),
                **({} if item.namespace is None else {"namespace": item.namespace}),
                arguments=_required(item.arguments, f"{param}.arguments"),
            )
        case "function_call_output":
            call_id = _required(item.call_id, f"{param}.call_id")
            return _item("function_call_output", call_id=call_id, output=_text(item.output, f"{param}.output"))
        case "file_search_call" | "mcp_list_tools" | "mcp_call" | "mcp_approval_response":
            return _of_server(item, param)
        case "reasoning":
            summary = _text(item.summary or (), f"{param}.summary")
            text = _text(item.content or (), f"{param}.content")
            return _item(
                "reasoning",
                summary=[{"type": "summary_text", "text": summary}] if summary else [],
                content=[{"type": "reasoning_text", "text": text}] if text else [],
            )
        case other:
            raise _unsupported(f"{param}.type", other, ", ".join(_PREFIXES))


def _of_server(item: InputItem, param: str) -> Item:
    """Return the item for something that the server has done, or may do."""
    if item.type == ITEM:
        approve = _required(item.approve, f"{param}.approve")
        return _item(ITEM, approval_request_id=item.approval_request_id, approve=approve, reason=item.reason or None)
    if item.type == "file_search_call":
        return _item("file_search_call", queries=list(item.queries or ()), results=None)
    if item.type == "mcp_list_tools":
        return _item("mcp_list_tools", server_label=_required(item.server_label, f"{param}.server_label"), tools=[])
    given = {name: _required(getattr(item, name), f"{param}.{name}") for name in ("server_label", "name", "arguments")}
    output = None if item.output is None else _text(item.output, f"{param}.output")
    return _item("mcp_call", **given, output=output, error=item.error)


def _text(content: str | tuple[ContentPart, ...] | None, param: str, first: int = 0) -> str:
    """Return the text of parts. ``first``: the number of the first one in an error."""
    if isinstance(content, str):
        return content
    parts = _required(content, param)
    for index, part in enumerate(parts, first):
        if part.type not in (*_TEXTS, "refusal"):
            raise not_text(f"{param}[{index}].type", part.type, "text alone")
        if part.text is None and part.refusal is None:
            _required(None, f"{param}[{index}].{'refusal' if part.type == 'refusal' else 'text'}")
    return "".join(part.text or part.refusal or "" for part in parts)


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
    reasoning = ""
    for item in _with_asked_calls(items):
        if item["type"] == "reasoning":
            reasoning = "".join(part["text"] for part in (*item.get("content", ()), *item["summary"]))
            continue
        if item["type"] in ("file_search_call", "mcp_list_tools"):
            continue
        if item["type"] == "mcp_call":
            made += _called(item)
            reasoning = ""
            continue
        turn = _message(item)
        if reasoning and turn["role"] == "assistant":
            turn["reasoning_content"] = reasoning
        reasoning = ""
        last = made[-1] if made else None
        if last is not None and len(made) == 1 and last["role"] == turn["role"] == "system":
            last["content"] += f"\n\n{turn['content']}"
        elif last is not None and last["role"] == turn["role"] == "assistant" and "tool_calls" in {**last, **turn}:
            _join(last, turn)
        else:
            made.append(turn)
    return made


def _with_asked_calls(items: Sequence[Item]) -> Iterator[Item]:
    """Yield the items, with calls that needed an approval where the model asked for them, with their results.

    A call that was answered just now has no result yet: its step's stands in that place later.
    """
    results = {item.get("approval_request_id"): item for item in items if item["type"] == "mcp_call"}
    ids = {item["id"] for item in items if item["type"] == ASKED}
    asked: list[Item] = []
    for item in (*items, None):
        if asked and (item is None or item["type"] != ASKED):
            yield from map(_asked_call, asked)
            yield from (_asked_result(one, results.get(one["id"])) for one in asked)
        asked = [] if item is None or item["type"] != ASKED else [*asked, item]
        if item is not None and item["type"] not in (ASKED, ITEM) and item.get("approval_request_id") not in ids:
            yield item


def _asked_call(item: Item) -> Item:
    return {"type": "function_call", "call_id": item["id"], "name": _name_of(item), "arguments": item["arguments"]}


def _asked_result(asked: Item, called: Item | None) -> Item:
    told = "Error: the call was not approved, so it was not made" if called is None else _result_of(called)
    return {"type": "function_call_output", "call_id": asked["id"], "output": told}


def _join(last: dict[str, Any], turn: dict[str, Any]) -> None:
    """Merge the assistant's text and tool calls into one message: tool results must follow the calls."""
    if "tool_calls" in turn:
        last.setdefault("tool_calls", []).extend(turn["tool_calls"])
    if "reasoning_content" in turn:
        last.setdefault("reasoning_content", turn["reasoning_content"])
    if "content" in turn:
        last["content"] = "\n".join(filter(None, [last.get("content"), turn["content"]]))


def _called(item: Item) -> list[dict[str, Any]]:
    """Return the turn with a call that the server made, and its result."""
    call = {"id": item["id"], "function": {"name": _name_of(item), "arguments": item["arguments"]}}
    turn = {"role": "assistant", "tool_calls": [call]}
    return [turn, {"role": "tool", "tool_call_id": item["id"], "content": _result_of(item)}]


def _name_of(item: Item) -> str:
    return _NO_NAME.sub("_", flat_name(item["server_label"], item["name"]))[:64]


def _result_of(item: Item) -> str:
    failed = (item.get("error") or {}).get("content") or ()
    told = item["output"] if item["output"] is not None else "\n".join(str(part.get("text")) for part in failed)
    return told or "no result"


def _message(item: Item) -> dict[str, Any]:
    match item["type"]:
        case "function_call":
            function = {"name": flat_name(item.get("namespace"), item["name"]), "arguments": item["arguments"]}
            return {"role": "assistant", "tool_calls": [{"id": item["call_id"], "function": function}]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
        case _:
            role = _ROLES[item["role"]]
            return {"role": role, **joined(map(_part, item["content"]))}


def _part(part: Item) -> str | ImagePart:
    if part["type"] != _IMAGE:
        return str(part["text"])
    return ImagePart({"url": part.get("image_url"), "file_id": part.get("file_id"), "detail": part.get("detail")})
