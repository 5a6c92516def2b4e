"""The chat completion request and its conversion to a job. Shared fields are in request_fields."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field

from headrace.features.openai.foreign_fields import FOREIGN, INSTEAD_OF_FILES, not_text
from headrace.features.openai.message_parts import ImagePart, joined
from headrace.features.openai.request_fields import (
    ReasoningField,
    TextRequest,
    check_reasoning,
    check_verbosity,
    job_of,
    reasoning_of,
    turns_beside,
)
from headrace.producer_api.http.job_options import IsHarmless, is_one_of, unsupported
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.payloads.reasoning import ReasoningEffort
from headrace.store.payloads.retrieval import Retrieval
from headrace.store.payloads.sampling_params import MAX_TOP_LOGPROBS
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.payloads.strict_model import Body
from headrace.store.tasks.generate import GenerateRequest


class ImageUrl(Body):
    """Where an image is: an https URL, or one with the data."""

    model_config = ConfigDict(extra="allow", frozen=True)

    url: str = Field(description="an https URL, or a data URL")
    detail: str | None = Field(None, description="how closely the model looks at it: auto, low or high")


class FileReference(Body):
    """A file by its id."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file_id: str | None = Field(None, description="the uploaded file")


class MessagePart(Body):
    """A part of a message: text, in an assistant's message a refusal, which is a text too, in a user's an image."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = Field(None, description="of a part `image_url`")
    file: FileReference | None = Field(None, description="of a part `file`: an image that was uploaded")


class ChatToolCall(Body):
    """A tool call that the assistant made. Extra fields from the client, such as ``index``, are ignored."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    type: str = "function"
    function: dict[str, Any] | None = None


class ChatTurn(Body):
    """One message."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: str
    content: str | tuple[MessagePart, ...] | None = None
    refusal: str | None = Field(None, description="of an assistant's message; its text if there is no `content`")
    name: str | None = None
    tool_calls: tuple[ChatToolCall, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(
        None, description="of an assistant's message; the model's chat template decides if the model is given it"
    )


class ChatTool(Body):
    """A tool that the model may use; only functions are supported."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    function: dict[str, Any] | None = None


class ChatRequest(TextRequest):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32},
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Count to ten."}],
                    "temperature": 0,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    "job": {"priority": 0, "on_disconnect": "continue"},
                },
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Name a river."}],
                    "logprobs": True,
                    "top_logprobs": 3,
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {
                            "name": "river",
                            "schema": {
                                "type": "object",
                                "properties": {"name": {"type": "string"}, "length_km": {"type": "integer"}},
                                "required": ["name", "length_km"],
                                "additionalProperties": False,
                            },
                        },
                    },
                },
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
                    "tools": [
                        {
                            "type": "function",
                            "function": {
                                "name": "get_weather",
                                "description": "The weather in a city",
                                "parameters": {
                                    "type": "object",
                                    "properties": {"city": {"type": "string", "maxLength": 40}},
                                    "required": ["city"],
                                },
                            },
                        }
                    ],
                    "tool_choice": "required",
                },
            ]
        },
    )

    input_field: ClassVar[str] = "messages"
    refused: ClassVar[Mapping[str, IsHarmless]] = {
        **FOREIGN,
        "functions": is_one_of([]),
        "function_call": is_one_of("none", "auto"),
        "modalities": is_one_of(["text"]),
        "audio": is_one_of(),
        "prediction": is_one_of(),
        "add_special_tokens": is_one_of(False),
        "system": is_one_of(""),
    }

    prompt: PromptReference | None = Field(
        None, description="an extension, same as in responses: a prompt template, whose messages come first"
    )
    messages: Annotated[tuple[ChatTurn, ...] | None, AfterValidator(turns_beside)] = Field(
        None, validate_default=True, description="the conversation; may be left out only with `prompt`"
    )
    store: bool | None = Field(
        None, description="true: it can be listed and read later; false: its contents are erased a minute after its end"
    )
    retrieval: Retrieval | None = Field(None, description="an extension: passages of vector stores for the answer")
    server_tools: ServerTools | None = Field(
        None, description="an extension: tools that the server calls for the model"
    )
    max_completion_tokens: int | None = None
    tools: tuple[ChatTool, ...] | None = None
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, or a function by its name"
    )
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="an extension, same as in vLLM")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="needs `logprobs` to be true")
    reasoning_effort: ReasoningEffort | None = Field(None, description="how much the model reasons before it answers")
    reasoning: ReasoningField | None = Field(None, description="an extension, same as in OpenRouter")
    enable_thinking: bool | None = Field(None, description="an extension, same as in Qwen's API")
    thinking_budget: int | None = Field(None, description="an extension, same as in Qwen's API")
    verbosity: str | None = Field(None, description="medium")

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """Name and value of the field that limits the answer's tokens."""
        if self.max_completion_tokens is None:
            return super().token_limit
        return "max_completion_tokens", self.max_completion_tokens


_CALL = ("name", "arguments")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def to_job(chat: ChatRequest) -> GenerateRequest:
    """Return the job for the request; raise InvalidRequest that names the request's field."""
    check_reasoning(chat.reasoning)
    check_verbosity(chat.verbosity, "verbosity")
    made = job_of(chat, _input(chat), _logprobs(chat))
    if chat.retrieval is None and chat.server_tools is None:
        return made
    if chat.store is not None:
        field = "server_tools" if chat.retrieval is None else "retrieval"
        raise unsupported(f"`store` does not go with `{field}`: leave it out", "store")
    if chat.server_tools is not None and chat.stream and chat.logprobs:
        # Those of an earlier turn are not kept in the form of a stream.
        raise unsupported("`logprobs` does not go with a stream of `server_tools`: leave one of them out", "logprobs")
    return made.model_copy(update={"retrieval": chat.retrieval, "server_tools": chat.server_tools})


def _input(chat: ChatRequest) -> dict[str, Any]:
    given = {
        "template": chat.prompt,
        "messages": [_message(index, turn) for index, turn in enumerate(chat.messages or ())] or None,
        "tools": [_tool(index, tool) for index, tool in enumerate(chat.tools or ())] or None,
        "tool_choice": _tool_choice(chat.tool_choice),
        "parallel_tool_calls": chat.parallel_tool_calls,
        "chat_template_kwargs": chat.chat_template_kwargs or None,
        "reasoning": reasoning_of(chat.reasoning, _reasoning_values(chat)),
    }
    return _present(given)


def _reasoning_values(chat: ChatRequest) -> dict[str, Any]:
    return {name: getattr(chat, name) for name in ("reasoning_effort", "enable_thinking", "thinking_budget")}


def _tool(index: int, tool: ChatTool) -> dict[str, Any]:
    if tool.type != "function":
        where = f"tools[{index}].type"
        raise unsupported(f"`{where}` {tool.type[:40]!r} is not supported: only functions are", where)
    return _present({"type": "function", "function": tool.function})


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.get("type") in ("allowed_tools", "custom"):
        where = "tool_choice.type"
        raise unsupported(f"`{where}` {choice['type']!r} is not supported: name a function", where)
    return choice


def _logprobs(chat: ChatRequest) -> int | None:
    if chat.logprobs:
        return chat.top_logprobs or 0
    if chat.top_logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs`: set it to true", param="top_logprobs")
    return None


def _message(index: int, turn: ChatTurn) -> dict[str, Any]:
    param = f"messages[{index}]"
    role = _ROLES.get(turn.role)
    if role is None:
        raise unsupported(
            f"`{param}.role` {turn.role[:40]!r} is not supported: one of {', '.join(_ROLES)}", f"{param}.role"
        )
    for name in ("function_call", "audio"):
        if (turn.model_extra or {}).get(name):
            raise unsupported(f"`{param}.{name}` is not supported", f"{param}.{name}")
    calls = [_tool_call(f"{param}.tool_calls[{number}]", call) for number, call in enumerate(turn.tool_calls or ())]
    given = {
        "role": role,
        **_content(turn, f"{param}.content"),
        "name": turn.name,
        "tool_calls": calls or None,
        "tool_call_id": turn.tool_call_id,
        "reasoning_content": turn.reasoning_content if role == "assistant" else None,
    }
    return _present(given)


def _tool_call(param: str, call: ChatToolCall) -> dict[str, Any]:
    if call.type != "function":
        where = f"{param}.type"
        raise unsupported(f"`{where}` {call.type[:40]!r} is not supported: only calls of functions are", where)
    if call.function is None:
        return {"id": call.id}
    # Drop fields that client libraries add, such as the parsed arguments of OpenAI's client.
    return {"id": call.id, "function": {name: call.function[name] for name in _CALL if name in call.function}}


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _content(turn: ChatTurn, param: str) -> dict[str, Any]:
    if turn.content is None:
        return {"content": turn.refusal if turn.role == "assistant" else None}
    if isinstance(turn.content, str):
        return {"content": turn.content}
    return joined(_part(turn.role, part, f"{param}[{index}]") for index, part in enumerate(turn.content))


_HELD_IN = {"text": "text", "refusal": "refusal", "image_url": "image_url", "file": "file.file_id"}
"""The field of a part that holds its content, by the type of the part."""


def _part(role: str, part: MessagePart, where: str) -> str | ImagePart:
    match role, part.type:
        case _, "text" if part.text is not None:
            return part.text
        case "assistant", "refusal" if part.refusal is not None:
            return part.refusal
        case "user", "image_url" if part.image_url is not None:
            return ImagePart({"url": part.image_url.url, "detail": part.image_url.detail})
        case "user", "file" if part.file is not None and part.file.file_id is not None:
            return ImagePart({"file_id": part.file.file_id})
        case "user", "file" if part.file is not None and (part.file.model_extra or {}).get("file_data"):
            param = f"{where}.file.file_data"
            raise unsupported(f"`{param}` is not supported: {INSTEAD_OF_FILES}", param)
        case (_, "text") | ("assistant", "refusal") | ("user", "image_url" | "file"):
            param = f"{where}.{_HELD_IN[part.type]}"
            raise InvalidRequest(f"`{param}` is required", param=param)
        case "user", other:
            raise not_text(f"{where}.type", other, "parts of the user are text, image_url, and file with a file_id")
        case _, other:
            raise not_text(f"{where}.type", other, "only text parts are")
