"""Turns of the Messages API, and their conversion to messages of ``store.payloads.conversation``.

    turn                                ──▶ messages for the model
    user: text                              user: text
    assistant: thinking, text, tool_use     assistant: text, with its reasoning and its calls
    user: tool_result, tool_result, text    tool: result, tool: result, user: text

Only text, images of the user, tool uses and their results are supported. Turns of one role in a row are one message.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, StrictBool

from headrace.features.openai.foreign_fields import not_text
from headrace.features.openai.message_parts import ImagePart, joined
from headrace.producer_api.http.job_options import unsupported
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.strict_model import Body

_BLOCKS = {"user": "text, image and tool_result", "assistant": "text, thinking and tool_use", "system": "text"}
_FAILED = "Error: "


class LenientBody(Body):
    """A body in which unknown fields are allowed."""

    model_config = ConfigDict(extra="allow", frozen=True)


class TextPart(LenientBody):
    """A block of text; other types are refused."""

    type: str
    text: str | None = None


class ImageSource(LenientBody):
    """Where an image is: in the request (base64), on a server (url), or uploaded (file)."""

    type: str = Field("", description="base64, url or file")
    media_type: str | None = Field(None, description="of base64")
    data: str | None = Field(None, description="of base64")
    url: str | None = Field(None, description="of url")
    file_id: str | None = Field(None, description="of file")


class ContentBlock(LenientBody):
    """A block of a turn: text, image, tool_use or tool_result."""

    type: str
    text: str | None = Field(None, description="of a text block")
    thinking: str | None = Field(
        None, description="of a thinking block; the model's chat template decides if the model is given it"
    )
    id: str | None = Field(None, description="of a tool use: the id of its answer")
    name: str | None = Field(None, description="of a tool use: the tool")
    input: dict[str, Any] | None = Field(None, description="of a tool use: the tool's input")
    tool_use_id: str | None = Field(None, description="of a tool result: the tool use")
    content: str | tuple[TextPart, ...] | dict[str, Any] | None = Field(
        None, description="of a tool result: a text, or text blocks"
    )
    source: ImageSource | None = Field(None, description="of an image")
    is_error: StrictBool | None = Field(None, description="of a tool result: the tool has failed")


class MessageTurn(LenientBody):
    """One turn: a text, or blocks."""

    role: str = Field(description="user, assistant or system")
    content: str | tuple[ContentBlock, ...] = Field(description="a text, or blocks")


@dataclass(frozen=True, slots=True)
class _Placed:
    """A message for the model, and the part of the request that it is from."""

    param: str
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Thought:
    """The text of a thinking block."""

    text: str


def messages_of(system: str | Sequence[TextPart] | None, turns: Sequence[MessageTurn]) -> list[dict[str, Any]]:
    """Return the conversation as messages. Raises InvalidRequest that names the first invalid part."""
    instructions = system if isinstance(system, str) else _text_of(system or (), "system")
    placed = [_Placed("system", {"role": "system", "content": instructions})] if instructions else []
    for index, turn in enumerate(turns):
        for new in _read(turn, f"messages[{index}]"):
            _append(placed, new)
    _check_results(placed)
    if not placed or placed[-1].param == "system":
        raise InvalidRequest("`messages` are empty: send a user's turn with a text", param="messages")
    if placed[-1].message["role"] == "assistant":
        raise unsupported(
            f"`{placed[-1].param}` is the assistant's: an answer that continues its last turn is not supported, end"
            " with a user's turn",
            placed[-1].param,
        )
    return [each.message for each in placed]


def _append(placed: list[_Placed], new: _Placed) -> None:
    """Append a message, or join it to the last one if both have the same author, other than a tool."""
    role = new.message["role"]
    if not placed or role == "tool" or placed[-1].message["role"] != role:
        placed.append(new)
        return
    last = placed[-1].message
    if calls := new.message.get("tool_calls"):
        last["tool_calls"] = [*last.get("tool_calls", ()), *calls]
    if thought := new.message.get("reasoning_content"):
        last.setdefault("reasoning_content", thought)
    before = last.get("content", "")
    if text := new.message.get("content"):
        last["content"] = "\n".join(filter(None, [before, text]))
    if images := new.message.get("images"):
        begin = len(before) + bool(before and text)
        last["images"] = [*last.get("images", ()), *({**image, "at": image["at"] + begin} for image in images)]


def _check_results(placed: Sequence[_Placed]) -> None:
    """Raise InvalidRequest unless the results of all tool uses, and no others, follow the turn that has the uses."""
    open_ids: dict[str, str] = {}
    for each in placed:
        if each.message["role"] == "tool":
            if open_ids.pop(each.message["tool_call_id"], None) is None:
                missing = "the turn before it has no `tool_use` block with this `tool_use_id`"
                raise InvalidRequest(f"`{each.param}`: {missing}", param=each.param)
        elif open_ids:
            break
        else:
            calls = each.message.get("tool_calls", ())
            open_ids = {call["id"]: each.param for call in calls}
            if len(open_ids) < len(calls):
                raise InvalidRequest(f"`{each.param}` has two `tool_use` blocks of one id", param=each.param)
    for tool_use_id, param in open_ids.items():
        message = f"the `tool_use` {tool_use_id[:128]!r} needs a `tool_result` block at the start of the next turn"
        raise InvalidRequest(f"`{param}`: {message}", param=param)


def _read(turn: MessageTurn, param: str) -> Iterator[_Placed]:
    """Yield the messages of a turn: the results of tools, then one with its text and tool uses."""
    if turn.role not in _BLOCKS:
        raise InvalidRequest(f"`{param}.role` is one of user, assistant and system", param=f"{param}.role")
    given = turn.content
    blocks = (ContentBlock(type="text", text=given),) if isinstance(given, str) else given
    shown: list[str | ImagePart] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[_Placed] = []
    for index, block in enumerate(blocks):
        where = f"{param}.content[{index}]"
        match _part(turn.role, block, where):
            case str() | ImagePart() as part:
                shown.append(part)
            case _Thought(text):
                thoughts.append(text)
            case _Placed() as result if any(shown):
                raise InvalidRequest(f"`{where}`: results of tools stand before the text of a turn", param=result.param)
            case _Placed() as result:
                results.append(result)
            case call:
                calls.append(call)
    yield from results
    fields = joined(shown, "\n")
    if any(fields.values()) or calls:
        fields |= {"tool_calls": calls, "reasoning_content": "\n".join(filter(None, thoughts))}
        required = {"content"} if "images" in fields else set()
        kept = {name: value for name, value in fields.items() if value or name in required}
        yield _Placed(param, {"role": turn.role} | kept)
    elif not results and turn.role != "assistant":  # an answer can be empty, and is sent back as it was
        raise InvalidRequest(f"`{param}.content` is empty: a turn has a text", param=f"{param}.content")


def _part(role: str, block: ContentBlock, param: str) -> str | ImagePart | _Thought | _Placed | dict[str, Any]:
    """Return a block's text or image, its thinking, its result of a tool, or its tool call."""
    match role, block.type:
        case _, "text":
            _require(block.text, f"{param}.text")
            return block.text or ""
        case "assistant", "thinking" | "redacted_thinking":
            return _Thought(block.thinking or "")
        case "assistant", "mcp_tool_use" | "mcp_tool_result":
            return _Thought("")  # the model is not given the earlier calls of the server again
        case "assistant", "tool_use":
            return _call(block, param)
        case "user", "image":
            return _image(block.source, f"{param}.source")
        case "user", "tool_result":
            return _Placed(param, _result(block, param))
        case _, other:
            raise not_text(f"{param}.type", other, f"blocks of the {role} are {_BLOCKS[role]}")


def _image(source: ImageSource | None, param: str) -> ImagePart:
    match source:
        case ImageSource(type="base64", media_type=str(kind), data=str(data)):
            return ImagePart({"url": f"data:{kind};base64,{data}"})
        case ImageSource(type="url", url=str(url)):
            return ImagePart({"url": url})
        case ImageSource(type="file", file_id=str(file_id)):
            return ImagePart({"file_id": file_id})
        case _:
            known = "base64 with `media_type` and `data`, url with `url`, or file with `file_id`"
            raise InvalidRequest(f"`{param}` is not of a known type: {known}", param=param)


def _call(block: ContentBlock, param: str) -> dict[str, Any]:
    for name in ("id", "name", "input"):
        _require(getattr(block, name), f"{param}.{name}")
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "function": {"name": block.name, "arguments": arguments}}


def _result(block: ContentBlock, param: str) -> dict[str, Any]:
    _require(block.tool_use_id, f"{param}.tool_use_id")
    content = block.content
    if isinstance(content, dict):
        raise InvalidRequest(f"`{param}.content` is a text, or text blocks", param=f"{param}.content")
    text = content if isinstance(content, str) else _text_of(content or (), f"{param}.content")
    # Chat templates have no field for a failure, so the text says it.
    if block.is_error and not text.lower().startswith("error"):
        text = f"{_FAILED}{text}"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


def _text_of(parts: Sequence[TextPart], param: str) -> str:
    for index, part in enumerate(parts):
        if part.type != "text":
            raise not_text(f"{param}[{index}].type", part.type, "only text blocks are")
        _require(part.text, f"{param}[{index}].text")
    return "\n".join(part.text or "" for part in parts)


def _require(value: object, param: str) -> None:
    if value is None:
        raise InvalidRequest(f"`{param}` is required", param=param)
