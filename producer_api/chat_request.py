"""A chat completion request of OpenAI's shape, and what it means as a job.

A field whose silent loss would change the answer is refused; harmless unknown ones pass. Bounds live in
``store.payloads`` alone: a complaint about the job's field is renamed to the field that the caller sent.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from producer_api.errors import from_validation
from store.errors import HeadraceError, InvalidRequest
from store.payloads import GenerateRequest, ServiceClass, Strict, WebhookSpec


class OnDisconnect(StrEnum):
    """What becomes of the job when its caller leaves before the end."""

    CANCEL = "cancel"
    CONTINUE = "continue"


class JobOptions(Strict):
    """What OpenAI has no word for; the official client sends it with ``extra_body={"job": {...}}``."""

    priority: int | None = None
    deadline_ms: int | None = None
    max_attempts: int | None = None
    webhook: WebhookSpec | None = None
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL


class TextPart(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None


class ChatTurn(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: str
    content: str | tuple[TextPart, ...] | None = None


class StreamOptions(BaseModel):
    """``include_usage`` asks for a last chunk with the token counts."""

    model_config = ConfigDict(extra="allow", frozen=True)

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
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
            ]
        },
    )

    model: str
    messages: Annotated[tuple[ChatTurn, ...], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="an extension, as vLLM has it")
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = Field(None, description="an extension, as vLLM has it")
    ignore_eos: bool | None = Field(None, description="an extension, as vLLM has it")
    metadata: dict[str, str] | None = None
    user: str | None = Field(None, description="your own user, for whom the usage is counted")
    safety_identifier: str | None = Field(None, description="the newer name of `user`, and before it")
    service_tier: Literal["auto", "default", "priority", "flex"] | None = None
    job: JobOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """True if a stream shall end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def on_disconnect(self) -> OnDisconnect:
        """What becomes of the job when its caller leaves."""
        return OnDisconnect.CANCEL if self.job is None else self.job.on_disconnect


# Somebody waits for a chat's answer, so without a word about it, it goes first.
_CLASSES = {
    None: ServiceClass.INTERACTIVE,
    "auto": ServiceClass.INTERACTIVE,
    "priority": ServiceClass.INTERACTIVE,
    "default": ServiceClass.STANDARD,
    "flex": ServiceClass.BATCH,
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty")
_JOB_FIELDS = ("priority", "deadline_ms", "max_attempts", "webhook")


def _is_one_of(*harmless: object) -> Callable[[object], bool]:
    return lambda value: value is None or value in harmless


# Fields that change the answer and that nothing here can honour, with the values that ask for nothing.
_REFUSED: dict[str, Callable[[object], bool]] = {
    "n": _is_one_of(1),
    "best_of": _is_one_of(1),
    "logprobs": _is_one_of(False),
    "top_logprobs": _is_one_of(0),
    "prompt_logprobs": _is_one_of(0, False),
    "logit_bias": _is_one_of({}),
    "tools": _is_one_of([]),
    "tool_choice": _is_one_of("none", "auto"),
    "functions": _is_one_of([]),
    "function_call": _is_one_of("none", "auto"),
    "response_format": _is_one_of({"type": "text"}),
    "modalities": _is_one_of(["text"]),
    "audio": _is_one_of(),
    "prediction": _is_one_of(),
    "web_search_options": _is_one_of(),
    "truncation": _is_one_of("disabled"),
    "truncate_prompt_tokens": _is_one_of(),
    "min_p": _is_one_of(0),
    "typical_p": _is_one_of(1),
    "min_tokens": _is_one_of(0),
    "length_penalty": _is_one_of(1),
    "use_beam_search": _is_one_of(False),
    "stop_token_ids": _is_one_of([]),
    "include_stop_str_in_output": _is_one_of(False),
    "bad_words": _is_one_of([]),
    "allowed_token_ids": _is_one_of(),
    "logits_processors": _is_one_of([]),
    "guided_json": _is_one_of(),
    "guided_regex": _is_one_of(),
    "guided_choice": _is_one_of(),
    "guided_grammar": _is_one_of(),
    "structured_outputs": _is_one_of(),
    "echo": _is_one_of(False),
    "chat_template": _is_one_of(),
    "chat_template_kwargs": _is_one_of({}),
    "add_generation_prompt": _is_one_of(True),
    "continue_final_message": _is_one_of(False),
    "prompt": _is_one_of(),
}


def to_job(chat: ChatRequest) -> GenerateRequest:
    """Return the job that the request asks for; raise InvalidRequest, naming the field as the caller spelled it."""
    for name, value in (chat.model_extra or {}).items():
        is_harmless = _REFUSED.get(name)
        if is_harmless is not None and not is_harmless(value):
            raise _unsupported(f"`{name}` is not supported: leave it out", name)
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true", param="stream_options")
    body = {
        "model": chat.model,
        "input": {"messages": [_message(index, turn) for index, turn in enumerate(chat.messages)]},
        "sampling": _sampling(chat),
        "service_class": _CLASSES[chat.service_tier],
        "metadata": chat.metadata or {},
        "user": chat.safety_identifier or chat.user or None,
        **_job_fields(chat),
    }
    try:
        return GenerateRequest.model_validate(body)
    except ValidationError as error:
        complaint = from_validation(error.errors(include_input=False))
        raise as_sent(complaint, chat) from error


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, code="unsupported_parameter", param=param)


def _message(index: int, turn: ChatTurn) -> dict[str, str]:
    param = f"messages[{index}]"
    role = _ROLES.get(turn.role)
    if role is None:
        raise _unsupported(
            f"`{param}.role` {turn.role[:40]!r} is not supported: one of {', '.join(_ROLES)}", f"{param}.role"
        )
    for name in ("tool_calls", "function_call", "audio"):
        if (turn.model_extra or {}).get(name):
            raise _unsupported(f"`{param}.{name}` is not supported", f"{param}.{name}")
    return {"role": role, "content": _text(turn, f"{param}.content")}


def _text(turn: ChatTurn, param: str) -> str:
    if turn.content is None:
        raise InvalidRequest(f"`{param}` is required", param=param)
    if isinstance(turn.content, str):
        return turn.content
    for index, part in enumerate(turn.content):
        if part.type != "text" or part.text is None:
            where = f"{param}[{index}].type"
            raise _unsupported(f"`{where}` {part.type[:40]!r} is not supported: only text parts are", where)
    return "".join(part.text or "" for part in turn.content)


def _sampling(chat: ChatRequest) -> dict[str, Any]:
    given: dict[str, Any] = {name: getattr(chat, name) for name in _SAMPLING}
    given["max_tokens"] = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    given["stop"] = (chat.stop,) if isinstance(chat.stop, str) else chat.stop
    given["ignore_eos"] = chat.ignore_eos
    return {name: value for name, value in given.items() if value is not None}


def _job_fields(chat: ChatRequest) -> dict[str, Any]:
    if chat.job is None:
        return {}
    given: Mapping[str, Any] = {name: getattr(chat.job, name) for name in _JOB_FIELDS}
    return {name: value for name, value in given.items() if value is not None}


def as_sent(error: HeadraceError, chat: ChatRequest) -> HeadraceError:
    """Let a complaint about a field of the job name the field of the chat request that it came from."""
    if error.param is None:
        return error
    name = _name_in_chat(error.param, chat)
    error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
    error.param = name
    return error


def _name_in_chat(param: str, chat: ChatRequest) -> str:
    if param in ("sampling.max_tokens", "max_tokens") and chat.max_completion_tokens is not None:
        return "max_completion_tokens"
    if param == "input":
        return "messages"
    if param.partition(".")[0] in _JOB_FIELDS:
        return f"job.{param}"
    return param.removeprefix("sampling.").removeprefix("input.")
