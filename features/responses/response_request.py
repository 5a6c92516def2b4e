"""The Responses API request, and its conversion to a job and a stored response row.

An unsupported field that would change the answer is refused; other unknown fields are ignored. The bounds of values are
in ``store.tasks.generate``: a validation error on a job field is renamed to the field of the request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict, StrictBool, StrictInt, ValidationError

from headrace.features.openai.foreign_fields import FOREIGN, INSTEAD
from headrace.features.openai.request_fields import (
    GUIDED,
    ReasoningField,
    check_reasoning,
    check_verbosity,
    json_grammar,
    reasoning_of,
    shows_summary,
)
from headrace.features.responses.answered_calls import ANSWERED
from headrace.features.responses.conversation_views import ConversationRef
from headrace.features.responses.field_names import as_sent
from headrace.features.responses.file_searches import retrieval_of
from headrace.features.responses.mcp_tools import LISTED, CalledTools
from headrace.features.responses.new_response import NewResponse
from headrace.features.responses.response_items import Input, Item, message, messages_of, read_items
from headrace.features.responses.response_tools import FunctionTool, shown_tools, tools_of
from headrace.producer_api.http.job_options import (
    CLASSES,
    IsHarmless,
    JobOptions,
    MetadataText,
    ServiceTier,
    is_kept,
    is_one_of,
    job_fields,
    refuse_near_misses,
    refuse_unsupported,
    unsupported,
)
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.payloads.prompt_reference import FilledTemplate, PromptReference, PromptUse, TemplatePlace
from headrace.store.payloads.sampling_params import MAX_TOP_LOGPROBS, GrammarSpec, Truncation
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.payloads.strict_model import Body
from headrace.store.tasks.generate import GenerateRequest

Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
"""Values of ``include``. Images are always shown; all others but logprobs and what a search found have no effect."""


StrictNumber = Annotated[float, Strict()]
"""A number; a string or boolean is refused."""


class _LenientBody(Body):
    model_config = ConfigDict(extra="allow", frozen=True)


class TextFormat(_LenientBody):
    """Text, any JSON object, or JSON that matches a schema."""

    type: str = "text"
    name: str | None = None
    schema_: dict[str, Any] | StrictBool | None = Field(None, alias="schema")
    strict: StrictBool | None = None
    description: str | None = None


class TextConfig(_LenientBody):
    """Format of the answer's text."""

    format: TextFormat | None = None
    verbosity: str | None = Field(None, description="medium")


class ResponseRequest(_LenientBody):
    """The body of ``POST /v1/responses``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2", "input": "Name three rivers.", "max_output_tokens": 64},
                {
                    "model": "smollm2",
                    "instructions": "Answer in one sentence.",
                    "input": [{"role": "user", "content": "What does a headrace do?"}],
                    "background": True,
                    "job": {"webhook": {"url": "https://example.com/hooks/headrace"}},
                },
                {
                    "model": "smollm2",
                    "input": "Which issues are open?",
                    "tools": [{"type": "mcp", "server_label": "tracker", "require_approval": "never"}],
                    "max_tool_calls": 4,
                },
                {
                    "model": "smollm2",
                    "previous_response_id": "resp_0197f0c2a3b47d518e9a2b6c7d8e9f01",
                    "input": [
                        {
                            "type": "mcp_approval_response",
                            "approval_request_id": "mcpr_0197f0c2a3b47d518e9a2b6c7d8e9f01_1",
                            "approve": True,
                        }
                    ],
                    "tools": [{"type": "mcp", "server_label": "tracker"}],
                },
            ]
        }
    )

    model: str
    input: Input | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationRef | None = None
    prompt: PromptReference | None = None
    background: StrictBool | None = None
    store: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: StrictInt | None = None
    temperature: StrictNumber | None = None
    top_p: StrictNumber | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    text: TextConfig | None = None
    reasoning: ReasoningField | None = Field(None, description="how much the model reasons, and how that is shown")
    tools: tuple[FunctionTool, ...] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    server_tools: ServerTools | None = Field(None, description="an extension, same as in chat completions")
    max_tool_calls: StrictInt | None = Field(None, ge=1, description="most calls that the server makes")
    truncation: Truncation | None = None
    include: tuple[Includable, ...] | None = None
    metadata: dict[str, MetadataText] | None = None
    service_tier: ServiceTier | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    top_k: StrictInt | None = Field(None, description="an extension, same as in vLLM")
    seed: StrictInt | None = Field(None, description="an extension, same as in chat completions")
    stop: str | tuple[str, ...] | None = Field(None, description="an extension, same as in chat completions")
    presence_penalty: StrictNumber | None = Field(None, description="an extension, same as in chat completions")
    frequency_penalty: StrictNumber | None = Field(None, description="an extension, same as in chat completions")
    repetition_penalty: StrictNumber | None = Field(None, description="an extension, same as in vLLM")
    min_p: StrictNumber | None = None
    min_tokens: StrictInt | None = None
    stop_token_ids: tuple[StrictInt, ...] | None = None
    logit_bias: dict[str, StrictNumber] | None = None
    bad_words: tuple[str, ...] | None = Field(None, description="an extension, same as in vLLM")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="an extension, same as in vLLM")
    job: JobOptions | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that the request names."""
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    @property
    def is_kept(self) -> bool:
        """True if the job continues when the client disconnects."""
        return bool(self.background) or is_kept(self.job)


_REFUSED: Mapping[str, IsHarmless] = {
    **FOREIGN,
    **dict.fromkeys(GUIDED, is_one_of()),
    "ignore_eos": is_one_of(False),
    "context_management": is_one_of([]),
    **dict.fromkeys(("image", "access_programs", "messages", "structured_outputs"), is_one_of()),
    "background_options": is_one_of({}, {"completion_window": "soonest"}),
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), is_one_of()),
    "response_format": is_one_of({"type": "text"}),
    "logprobs": is_one_of(False),
    "functions": is_one_of([]),
    "function_call": is_one_of("none", "auto"),
}
# What another field of this API means.
_INSTEAD = {
    **INSTEAD,
    **{name: "send `max_output_tokens`" for name, text in INSTEAD.items() if text == "send `max_tokens`"},
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "send `max_output_tokens`"),
    **dict.fromkeys(("response_format", "json_schema", "format", "json_object"), "send `text.format`"),
    **dict.fromkeys(("structured_outputs", "regex", "ebnf", "grammar", *GUIDED), "send `text.format` with a schema"),
    "messages": "send `input`",
    **dict.fromkeys(("reasoning_effort", "thinking", "enable_thinking"), "send `reasoning.effort`"),
    "thinking_budget": "send `reasoning.max_tokens`",
    "verbosity": "put it into the instructions",
    "logprobs": "send `top_logprobs`",
}
_SAMPLING = (
    *("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("min_p", "min_tokens", "stop_token_ids", "logit_bias", "bad_words"),
)
# The tier that the answer reports if the request names none.
_TIERS = {ServiceClass.INTERACTIVE: "priority", ServiceClass.STANDARD: "default", ServiceClass.BATCH: "flex"}


@dataclass(frozen=True, slots=True)
class ResponseContext:
    """The objects that the request refers to: the conversation so far, and the filled prompt template.

    ``answer``: the items of the previous answer, which are not yet part of ``items``. ``referenced``: by their ids, the
    items that the input refers to. ``called``: the tools that the server calls. ``answered``: the calls of the previous
    answer whose approvals the input answers. ``before``: the job of the response before, if there is one.
    """

    items: Sequence[Item] = ()
    answer: Sequence[Item] = ()
    filled: FilledTemplate | None = None
    use: PromptUse | None = None
    referenced: Mapping[str, Item] = field(default_factory=dict)
    called: CalledTools | None = None
    answered: tuple[AnsweredCall, ...] = ()
    before: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedResponse:
    """A job, and the response row to store with it."""

    job: GenerateRequest
    response: NewResponse


def to_job(request: ResponseRequest, context: ResponseContext) -> PreparedResponse:
    """Return the job for the request; raise InvalidRequest that names the request's field."""
    _check(request)
    filled = context.filled
    instructions = request.instructions if request.instructions is not None or filled is None else filled.instructions
    given = [] if filled is None else [message(role, text) for role, text in filled.messages]
    sent = [] if request.input is None else read_items(request.input, context.referenced)
    new = [*context.answer, *given, *sent]
    reasoning = reasoning_of(request.reasoning)
    retrieval = retrieval_of(request.tools, request.tool_choice)
    choice = request.tool_choice if context.called is None else None  # calls of the server are no fields of the input
    tools = tools_of(request.tools or (), choice, request.parallel_tool_calls)
    known = {item["id"] for item in context.items}
    body = {
        "model": request.model,
        "input": {
            "messages": messages_of(
                instructions or None, [*context.items, *(item for item in new if item["id"] not in known)]
            ),
            "chat_template_kwargs": request.chat_template_kwargs or None,
            "reasoning": reasoning,
            **tools,
        },
        "sampling": _sampling(request),
        "truncation": request.truncation or Truncation.DISABLED,
        "service_class": _service_class(request),
        "metadata": request.metadata or {},
        "user": request.safety_identifier or request.user or None,
        **job_fields(request.job),
    }
    try:
        job = GenerateRequest.model_validate(body)
    except ValidationError as error:
        raise as_sent(from_validation(error.errors(include_input=False)), request) from error
    called = context.called
    steps = {"retrieval": retrieval, "server_tools": None if called is None else called.server_tools}
    job = job.model_copy(update={name: value for name, value in steps.items() if value is not None})
    if context.use is not None:
        is_continued = bool(context.items or context.answer)
        tail = len(messages_of(None, new[len(context.answer) :])) if is_continued else 0
        place = TemplatePlace(0 if is_continued else bool(instructions) + len(given), tail)
        job = job.filled_in(job.input.model_copy(update={"special_tokens": "text"}), context.use, place)
    made = replace(_new_response(request, instructions, new, context.use), job_before=context.before)
    return PreparedResponse(job, _with_calls(made, context))


def _with_calls(made: NewResponse, context: ResponseContext) -> NewResponse:
    """Return the row with the tools of servers, and the calls that its job begins with."""
    if context.called is None:
        return made
    answered = {ANSWERED: [call.approval_id for call in context.answered]} if context.answered else {}
    shown = made.request | {LISTED: context.called.listed} | answered
    return replace(made, request=shown, answered_calls=context.answered)


def _check(request: ResponseRequest) -> None:
    refuse_unsupported(request, _REFUSED, _INSTEAD)
    refuse_near_misses(request, _REFUSED)
    continued = request.previous_response_id or request.conversation_id
    if request.input is None and request.prompt is None and continued is None:
        raise InvalidRequest("`input` is required", param="input")
    if request.conversation is not None and request.store is False:
        raise InvalidRequest("a response of a conversation must be stored: leave out `store`", param="store")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true", param="stream_options")
    if request.background and request.store is False:
        raise InvalidRequest("a background response must be stored: leave out `store`", param="store")
    check_reasoning(request.reasoning)
    check_verbosity(None if request.text is None else request.text.verbosity, "text.verbosity")


def _service_class(request: ResponseRequest) -> ServiceClass:
    if request.background and request.service_tier in (None, "auto"):
        return ServiceClass.STANDARD  # no client waits for it
    return CLASSES[request.service_tier]


def _sampling(request: ResponseRequest) -> dict[str, Any]:
    given: dict[str, Any] = {name: getattr(request, name) for name in _SAMPLING}
    given["max_tokens"] = request.max_output_tokens
    given["stop"] = (request.stop,) if isinstance(request.stop, str) else request.stop
    given["grammar"] = _grammar(request)
    if request.top_k == -1:
        given["top_k"] = 0
    if request.top_logprobs or "message.output_text.logprobs" in (request.include or ()):
        given["logprobs"] = request.top_logprobs or 0
    return {name: value for name, value in given.items() if value is not None}


def _grammar(request: ResponseRequest) -> GrammarSpec | None:
    text_format = None if request.text is None else request.text.format
    match "text" if text_format is None else text_format.type:
        case "text":
            return None
        case "json_object":
            schema = None if text_format is None else text_format.schema_
            return json_grammar({"type": "object"} if schema is None else schema, "text.format")
        case "json_schema" if text_format is not None and text_format.schema_ is not None:
            return json_grammar(text_format.schema_, "text.format.schema")
        case "json_schema":
            raise InvalidRequest("`text.format.schema` is required", param="text.format.schema")
        case other:
            known = "text, json_object, json_schema"
            raise unsupported(f"`text.format.type` {other[:40]!r} is not supported: {known}", "text.format.type")


def _known_fields(request: _LenientBody, *, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the known fields. Unknown field names are user text and must not be stored."""
    names = type(request).model_fields.keys() - exclude
    return request.model_dump(mode="json", by_alias=True, include=set(names), exclude_none=True)


def _known_choice(request: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    return (
        {name: request[name] for name in ("type", "name") if name in request} if isinstance(request, dict) else request
    )


def _new_response(
    request: ResponseRequest, instructions: str | None, items: list[Item], use: PromptUse | None
) -> NewResponse:
    prompt = None if request.prompt is None else request.prompt.model_dump(mode="json")
    text = {} if request.text is None else _known_fields(request.text, exclude=frozenset(["format"]))
    if request.text is not None and request.text.format is not None:
        text["format"] = _known_fields(request.text.format)
    stored = {
        "conversation": None if request.conversation_id is None else {"id": request.conversation_id},
        "instructions": instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "prompt": None if prompt is None or use is None else prompt | {"version": str(use.version)},
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": _shown_reasoning(request.reasoning),
        "safety_identifier": request.safety_identifier,
        "service_tier": request.service_tier or _TIERS[_service_class(request)],
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": _known_choice(request.tool_choice) or "auto",
        "tools": shown_tools(request.tools or ()),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": request.truncation or Truncation.DISABLED,
        "user": request.user,
    }
    return NewResponse(
        previous_id=request.previous_response_id,
        is_stored=request.store is not False,
        is_background=bool(request.background),
        input=items,
        request=stored,
        goes_on=request.previous_response_id is not None,
        appends_to=request.conversation_id,
    )


def _shown_reasoning(given: ReasoningField | None) -> dict[str, Any]:
    effort = None if given is None else given.effort
    summary = "detailed" if shows_summary(given) else None
    return {"effort": effort, "summary": summary}
