"""The Messages API request, and its conversion to a job.

An unsupported field that would change the answer is refused; other unknown fields are ignored. The bounds of values are
in ``store.tasks.generate``: a validation error on a job field is renamed to the field of the request.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from headrace.features.anthropic.message_turns import LenientBody, MessageTurn, TextPart, messages_of
from headrace.features.openai.foreign_fields import FOREIGN, INSTEAD
from headrace.features.openai.request_fields import GUIDED, json_grammar, turns_beside
from headrace.producer_api.http.job_options import (
    JOB_FIELDS,
    IsHarmless,
    JobOptions,
    is_off,
    is_one_of,
    job_fields,
    refuse_near_misses,
    refuse_unsupported,
    unsupported,
)
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.payloads.reasoning import ReasoningEffort
from headrace.store.payloads.sampling_params import GrammarSpec, Truncation
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.tasks.generate import GenerateRequest


class MessageTool(LenientBody):
    """A tool that the caller runs. Tools that a server would run are not supported."""

    type: str | None = Field(None, description="custom, or left out")
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = Field(None, description="JSON schema of the tool's `input`")
    strict: StrictBool | None = Field(
        None, description="hold the `input` to the schema also where the model may choose"
    )


class MessageToolChoice(LenientBody):
    """Whether the model uses tools: auto, any (at least one), tool (the one with this `name`) or none."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: StrictBool | None = Field(None, description="true: at most one tool use per answer")


class MessageMetadata(LenientBody):
    """What the request is for."""

    user_id: str | None = Field(None, description="your end user; usage can be grouped by it")


class ThinkingConfig(LenientBody):
    """Whether the model thinks before it answers."""

    type: str = Field(description="enabled, disabled, or adaptive: as much as the model likes")
    budget_tokens: StrictInt | None = Field(None, description="of enabled: the most tokens of thinking")
    display: str | None = Field(None, description="summarized: the thinking is shown as it is")


class JsonOutputFormat(LenientBody):
    """JSON that matches a schema."""

    type: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class OutputConfig(LenientBody):
    """The form of the answer."""

    format: JsonOutputFormat | None = None
    effort: str | None = Field(None, description="how much a model thinks, if `thinking` is adaptive")


class CountTokensRequest(LenientBody):
    """The body of ``POST /v1/messages/count_tokens``: the part of a request that the model reads."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}]}]}
    )

    model: str
    prompt: PromptReference | None = Field(
        None, description="an extension: a prompt template, whose messages come first"
    )
    messages: Annotated[tuple[MessageTurn, ...] | None, AfterValidator(turns_beside)] = Field(
        None, validate_default=True, description="the conversation; may be left out only with `prompt`"
    )
    system: str | tuple[TextPart, ...] | None = Field(None, description="the system prompt: a text, or text blocks")
    tools: tuple[MessageTool, ...] | None = Field(
        None, description="tools that the model may use; the caller runs them"
    )
    tool_choice: MessageToolChoice | None = Field(None, description="whether the model uses tools")
    thinking: ThinkingConfig | None = Field(None, description="whether the model thinks before it answers")
    output_config: OutputConfig | None = Field(None, description="the form of the answer")


class MessageRequest(CountTokensRequest):
    """The body of ``POST /v1/messages``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "max_tokens": 64,
                    "system": "Answer in one sentence.",
                    "messages": [{"role": "user", "content": "What does a headrace do?"}],
                    "stop_sequences": ["\n\n"],
                },
                {
                    "model": "smollm2",
                    "max_tokens": 128,
                    "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
                    "tools": [
                        {
                            "name": "get_weather",
                            "description": "The weather in a city",
                            "input_schema": {
                                "type": "object",
                                "properties": {"city": {"type": "string", "maxLength": 40}},
                                "required": ["city"],
                            },
                        }
                    ],
                    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
                },
            ]
        }
    )

    max_tokens: StrictInt = Field(description="most tokens of the answer")
    stream: StrictBool | None = None
    stop_sequences: tuple[str, ...] | None = Field(None, description="texts that end the answer; not included in it")
    temperature: StrictFloat | None = None
    top_p: StrictFloat | None = None
    top_k: StrictInt | None = None
    seed: StrictInt | None = Field(None, description="an extension: same seed and request, same answer")
    presence_penalty: StrictFloat | None = Field(None, description="an extension, same as in chat completions")
    frequency_penalty: StrictFloat | None = Field(None, description="an extension, same as in chat completions")
    repetition_penalty: StrictFloat | None = Field(None, description="an extension, same as in chat completions")
    truncation: Truncation | None = Field(None, description="an extension, same as in chat completions")
    metadata: MessageMetadata | None = Field(None, description="`user_id`: your end user")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="auto starts before standard_only")
    server_tools: ServerTools | None = Field(
        None, description="an extension: tools that the server calls for the model"
    )
    job: JobOptions | None = None


def _keeps_the_prompt(value: object) -> bool:
    """True for a `context_management` that removes thinking alone: no turn here has any."""
    edits = value.get("edits") if isinstance(value, dict) else None
    return value is None or all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking") for edit in edits or ()
    )


_REFUSED: Mapping[str, IsHarmless] = {
    **FOREIGN,
    **dict.fromkeys((*GUIDED, "min_p", "min_tokens", "stop_token_ids", "logit_bias"), is_off),
    "ignore_eos": is_one_of(False),
    "container": is_one_of(),
    "context_management": _keeps_the_prompt,
    "mcp_servers": is_one_of([]),
    "thread": is_one_of(),
    "fallbacks": is_one_of([], "default"),  # "default": none for a model that has none
    "speed": is_one_of("standard"),
    "output_format": is_one_of(),
    "stop": is_one_of([]),
    "max_completion_tokens": is_one_of(),
    "max_tokens_to_sample": is_one_of(),
    "response_format": is_one_of({"type": "text"}),
    "structured_outputs": is_one_of(),
    "functions": is_one_of([]),
}
_NO_COUNT: Mapping[str, IsHarmless] = {"compaction": is_one_of()}
"""What changes an answer, and not the count of the tokens before it."""
# What another field of this API means; for every other one the advice is to leave it out.
_SAME = ("send `max_tokens`", "name a `model`", "send `seed`", "send `truncation`", INSTEAD["priority"])
_INSTEAD = {
    "thread": "no conversation is held here, send all of its messages",
    "fallbacks": "send another request with another `model`",
    "compaction": "send the messages that should stay, or `truncation`",
    **dict.fromkeys(("stop", "stop_strings", "stop_words", "stop_regex"), "send `stop_sequences`"),
    **{name: text for name, text in INSTEAD.items() if text in _SAME},
    **dict.fromkeys(("max_completion_tokens", "max_tokens_to_sample"), "send `max_tokens`"),
    **dict.fromkeys(("response_format", "output_format", "structured_outputs", *GUIDED), "send `output_config.format`"),
    **dict.fromkeys(("json_schema", "format", "json_object", "guided_json_object"), "send `output_config.format`"),
    "functions": "send `tools`",
    "mcp_servers": "register the servers, and name them in `server_tools`",
    "reasoning_effort": "send `output_config.effort`",
    **dict.fromkeys(("reasoning", "enable_thinking", "thinking_budget"), "send `thinking`"),
    "n": INSTEAD["n"],
}
_TOOL_REFUSED: Mapping[str, IsHarmless] = {
    "defer_loading": is_one_of(False),
    "input_examples": is_one_of([]),
}
_CLASSES = {None: ServiceClass.INTERACTIVE, "auto": ServiceClass.INTERACTIVE, "standard_only": ServiceClass.STANDARD}
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty")
_MODES = {"auto": "auto", "any": "required", "none": "none"}


def to_job(request: CountTokensRequest) -> GenerateRequest:
    """Return the job for the request, or for the part of one that is counted.

    Raises InvalidRequest that names the request's field.
    """
    _check(request)
    source = {"template": request.prompt, "messages": messages_of(request.system, request.messages or ()) or None}
    body: dict[str, Any] = {
        "model": request.model,
        "input": {**source, **_tools(request), "reasoning": _reasoning(request)},
        "sampling": _sampling(request),
    }
    if isinstance(request, MessageRequest):
        body |= {
            "service_class": _CLASSES[request.service_tier],
            "truncation": request.truncation or Truncation.DISABLED,
            "user": None if request.metadata is None else request.metadata.user_id or None,
            **job_fields(request.job),
        }
    try:
        made = GenerateRequest.model_validate(body)
    except ValidationError as error:
        raise as_sent(from_validation(error.errors(include_input=False))) from error
    called = request.server_tools if isinstance(request, MessageRequest) else None
    return made if called is None else made.model_copy(update={"server_tools": called})


def _check(request: CountTokensRequest) -> None:
    of_answer = _NO_COUNT if isinstance(request, MessageRequest) else {}
    refuse_unsupported(request, {**_REFUSED, **of_answer}, _INSTEAD)
    refuse_near_misses(request, {*_REFUSED, *_NO_COUNT, *MessageRequest.model_fields})


_EFFORTS = {"max": "xhigh", **{effort.value: effort.value for effort in ReasoningEffort}}


def _reasoning(request: CountTokensRequest) -> dict[str, Any]:
    """Return the ``reasoning`` of the job's input. As in Anthropic's API, a model thinks only if it is asked to."""
    thinking = request.thinking or ThinkingConfig(type="off")
    if thinking.display not in (None, "summarized"):
        raise unsupported("`thinking.display` is not supported: leave it out", "thinking.display")
    match thinking.type:
        case "off" if request.thinking is None:
            return {"effort": "minimal", "optional": True}
        case "disabled":
            return {"effort": "none"}
        case "adaptive":
            effort = None if request.output_config is None else request.output_config.effort
            return {"effort": _EFFORTS.get(effort or ""), "optional": True}
        case "enabled":
            return {"max_tokens": _budget(request, thinking.budget_tokens)}
        case other:
            message = f"`thinking.type` {other[:40]!r} is not supported: enabled, disabled and adaptive are"
            raise unsupported(message, "thinking.type")


def _budget(request: CountTokensRequest, budget: int | None) -> int:
    where = "thinking.budget_tokens"
    if budget is None:
        raise InvalidRequest(f"`{where}` is required", param=where)
    if isinstance(request, MessageRequest) and budget >= request.max_tokens:
        message = f"`{where}` is {budget}, and leaves nothing of `max_tokens` {request.max_tokens} for the answer"
        raise InvalidRequest(message, param=where)
    return budget


def _sampling(request: CountTokensRequest) -> dict[str, Any]:
    given: dict[str, Any] = {"grammar": _grammar(request.output_config)}
    if isinstance(request, MessageRequest):
        given |= {name: getattr(request, name) for name in _SAMPLING}
        given |= {"max_tokens": request.max_tokens, "stop": request.stop_sequences}
    return {name: value for name, value in given.items() if value is not None}


def _grammar(config: OutputConfig | None) -> GrammarSpec | None:
    if config is None or config.format is None:
        return None
    if config.format.type != "json_schema":
        found = f"`output_config.format.type` {config.format.type[:40]!r} is not supported: send json_schema"
        raise unsupported(found, "output_config.format.type")
    if config.format.schema_ is None:
        raise InvalidRequest("`output_config.format.schema` is required", param="output_config.format.schema")
    return json_grammar(config.format.schema_, "output_config.format.schema")


def _tools(request: CountTokensRequest) -> dict[str, Any]:
    """Return the tools and the choice as fields of a job's input."""
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    choice = request.tool_choice
    if not tools:
        if choice is not None and choice.type not in ("auto", "none"):
            raise InvalidRequest("`tool_choice` needs `tools`", param="tool_choice")
        return {}
    if choice is None:
        return {"tools": tools}
    is_parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    given = {"tools": tools, "tool_choice": _chosen(choice), "parallel_tool_calls": is_parallel}
    return {name: value for name, value in given.items() if value is not None}


def _tool(tool: MessageTool, param: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        message = f"`{param}.type` {tool.type[:40]!r} is not supported: only custom tools are, which the caller runs"
        raise unsupported(message, f"{param}.type")
    for name, value in (tool.model_extra or {}).items():
        if name in _TOOL_REFUSED and not _TOOL_REFUSED[name](value):
            raise unsupported(f"`{param}.{name}` is not supported: leave it out", f"{param}.{name}")
    for name in ("name", "input_schema"):
        if getattr(tool, name) is None:
            raise InvalidRequest(f"`{param}.{name}` is required", param=f"{param}.{name}")
    function = {"name": tool.name, "parameters": tool.input_schema}
    optional = {"description": tool.description, "strict": tool.strict}
    return {"function": function | {name: value for name, value in optional.items() if value is not None}}


def _chosen(choice: MessageToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidRequest("`tool_choice.name` is required: the name of a tool", param="tool_choice.name")
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type not in _MODES:
        raise InvalidRequest("`tool_choice.type` is one of auto, any, tool and none", param="tool_choice.type")
    return _MODES[choice.type]


_RENAMED = {
    "sampling.stop": "stop_sequences",
    "input.reasoning": "thinking",
    "input.reasoning.effort": "thinking.type",
    "input.reasoning.max_tokens": "thinking.budget_tokens",
    "user": "metadata.user_id",
    "input.parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "input": "messages",
    "input.token_ids": "messages",
    "sampling": "max_tokens",
}
_OF_TOOLS = (("input.", ""), (".function.parameters", ".input_schema"), (".function", ""))


def as_sent(error: HeadraceError) -> HeadraceError:
    """Rename the job field in an error to the request's field."""
    if error.param is not None:
        name = _name_in_request(error.param)
        error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
        error.param = name
    return error


def _name_in_request(param: str) -> str:
    plain = re.sub(r"\[\d+\]$", "", param)
    if plain in _RENAMED:
        return _RENAMED[plain] + param.removeprefix(plain)
    if param.startswith("input.template"):
        return param.replace("input.template", "prompt", 1)
    if param.startswith("input.tools"):
        for ours, sent in _OF_TOOLS:
            param = param.replace(ours, sent, 1)
        return param
    if param.startswith("sampling.grammar"):
        return "output_config.format"
    if param.partition(".")[0] in JOB_FIELDS:
        return f"job.{param}"
    return param.removeprefix("sampling.").removeprefix("input.")
