"""What a job carries, as typed data: the request body of ``POST /v1/jobs`` and the payload column are the same shape.

Bounds that need no model (lengths, ranges, counts) are checked here, at the edge; what needs the model's tokenizer
(the context window) is checked by ``producer_api`` with ``prompts``. Unknown fields are refused, because a sampling
field that is silently dropped changes the answer.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from store.errors import InvalidRequest
from store.payloads.conversation import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatMessage,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoiceMode,
    check_tool_results,
)
from store.payloads.sampling_params import MAX_GRAMMAR_CHARS as MAX_GRAMMAR_CHARS
from store.payloads.sampling_params import MAX_NEW_TOKENS as MAX_NEW_TOKENS
from store.payloads.sampling_params import MAX_TOP_LOGPROBS as MAX_TOP_LOGPROBS
from store.payloads.sampling_params import GrammarKind as GrammarKind
from store.payloads.sampling_params import GrammarSpec as GrammarSpec
from store.payloads.sampling_params import Sampling as Sampling
from store.payloads.strict_model import Strict, Text
from store.schema.webhook_events import JOB_EVENTS

MAX_EMBED_INPUTS = 2048
MAX_EMBED_TOKENS = 131_072

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_EMBED_TOKENS)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class GenerateInput(Strict):
    """What the model is given: a conversation for its chat template, or a raw prompt as text or as token ids.

    Exactly one of the three. ``tools`` go with a conversation. ``tool_choice`` is ``auto`` if it is not given;
    ``parallel_tool_calls`` false keeps the answer to one call.
    """

    tools: Annotated[tuple[Tool, ...], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceMode | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    prompt: Text | None = None
    token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_NEW_TOKENS)] | None = None

    @field_validator("tools")
    @classmethod
    def _has_each_name_once(cls, tools: tuple[Tool, ...] | None) -> tuple[Tool, ...] | None:
        names = [tool.function.name for tool in tools or ()]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two functions are named {doubled}: each needs a name of its own")
        return tools

    @field_validator("tool_choice", mode="wrap")
    @classmethod
    def _can_be_chosen(
        cls, value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> ToolChoiceMode | NamedTool | None:
        try:
            choice: ToolChoiceMode | NamedTool | None = read(value)
        except ValidationError:
            known = '`none`, `auto`, `required` or `{"type": "function", "function": {"name": ...}}`'
            raise ValueError(f"it is one of {known}") from None
        if "tools" not in info.data or choice in (None, ToolChoiceMode.NONE, ToolChoiceMode.AUTO):
            return choice
        names = [tool.function.name for tool in info.data["tools"] or ()]
        if not names:
            raise ValueError("there is nothing to choose from: give `tools` as well")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ValueError(f"no tool is named {choice.function.name}")
        return choice

    @field_validator("messages")
    @classmethod
    def _calls_are_answered(cls, messages: tuple[ChatMessage, ...] | None) -> tuple[ChatMessage, ...] | None:
        check_tool_results(messages or ())
        return messages

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if [self.messages, self.prompt, self.token_ids].count(None) != 2:
            raise ValueError("give exactly one of `messages`, `prompt` and `token_ids`")
        if self.tools is not None and self.messages is None:
            raise ValueError("`tools` go with `messages`: a raw prompt has no place for them")
        return self

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call now."""
        return () if self.tool_choice is ToolChoiceMode.NONE else self.tools or ()


WebhookUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class WebhookSpec(Strict):
    """Where to send this job's terminal event, beside the tenant's endpoints; only if it is one of ``events``."""

    url: WebhookUrl
    events: Annotated[tuple[str, ...], Field(min_length=1, max_length=len(JOB_EVENTS))] | None = Field(
        None, description=f"of {', '.join(sorted(JOB_EVENTS))}; null: however it ends"
    )

    @field_validator("events")
    @classmethod
    def _are_events_of_jobs(cls, events: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := sorted(set(events or ()) - JOB_EVENTS):
            raise ValueError(f"unknown events {', '.join(unknown)[:200]}: use {', '.join(sorted(JOB_EVENTS))}")
        return events


class ServiceClass(StrEnum):
    """Who goes first when there is a backlog."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


CLASS_RANKS = {ServiceClass.INTERACTIVE: 0, ServiceClass.STANDARD: 1, ServiceClass.BATCH: 2}
"""The class as it is stored and sorted: a lower rank is served first."""


class Truncation(StrEnum):
    """What becomes of a conversation that leaves no room for an answer in the context window."""

    DISABLED = "disabled"  # it is refused
    AUTO = "auto"  # its oldest turns are left out


class JobOrder(Strict):
    """What every job says beside its task's own input: the model, who goes first, and how long it may take."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    service_class: ServiceClass = ServiceClass.STANDARD
    priority: int = Field(5, ge=0, le=9, description="0 goes first, 9 last, within the service class")
    deadline_ms: int | None = Field(None, ge=1, le=30 * 86_400_000, description="how long from acceptance to an answer")
    max_attempts: int | None = Field(None, ge=1, le=100)
    webhook: WebhookSpec | None = None
    user: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        None, description="your own user, for whom the usage is counted"
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(default_factory=dict)


class GenerateRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for generated text."""

    task: Literal["generate"] = "generate"
    input: GenerateInput
    sampling: Sampling = Sampling()
    truncation: Truncation = Truncation.DISABLED


Dimensions = Annotated[
    int, Field(ge=1, le=65_536, description="of each vector; fewer than the model's only where it was trained for that")
]


class EmbedInput(Strict):
    """What is embedded: texts, or token ids of the model's own vocabulary; exactly one of the two.

    Token ids are taken as they are: the special tokens that the model expects around a text are the caller's to give.
    """

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_EMBED_INPUTS)] | None = None
    token_ids: Annotated[tuple[TokenIds, ...], Field(min_length=1, max_length=MAX_EMBED_INPUTS)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.texts is None) == (self.token_ids is None):
            raise ValueError("give exactly one of `texts` and `token_ids`")
        return self


class EmbedPayload(Strict):
    """The part of an embed request that the worker needs, as stored in the job row."""

    input: EmbedInput
    dimensions: Dimensions | None = None


class EmbedRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for vectors."""

    task: Literal["embed"]
    input: EmbedInput
    dimensions: Dimensions | None = None


class EmbedOutput(Strict):
    """What an embed job produced: for each input a vector of ``dimensions`` numbers, float32, little-endian, base64."""

    embeddings: tuple[str, ...]
    dimensions: int


TASK_TAG = "task:"
"""How the name of a member of ``JobRequest`` begins, which pydantic puts before a complaint's field."""


def _tag_of(body: object) -> str:
    """Return what tells the members of ``JobRequest`` apart; one without a task generates."""
    task = body.get("task", "generate") if isinstance(body, Mapping) else getattr(body, "task", "generate")
    return f"{TASK_TAG}{task}" if isinstance(task, str) else TASK_TAG


JobRequest = Annotated[
    Annotated[GenerateRequest, Tag("task:generate")] | Annotated[EmbedRequest, Tag("task:embed")],
    Discriminator(
        _tag_of,
        custom_error_type="task_unknown",
        custom_error_message="the task is one of generate, embed",
    ),
]
"""The body of ``POST /v1/jobs``."""


class ToolStyle(StrEnum):
    """How a model writes tool calls (``prompts.tool_calls``)."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    JSON = "json"


class PolicyHit(Strict):
    """What a rule of the tenant's policy found in a text, and how often: never what it was."""

    rule: str
    kind: str
    action: str
    count: int


class PinnedPolicy(Strict):
    """The version of the tenant's policy that the job's output is under, whatever comes after.

    ``model`` is as in ``store.registry.policies``; ``flagged`` is what rules said of the input they let in. ``counts``
    are the numbers of placeholders that stand in it, by kind; ``vault`` what they are turned back into for whoever
    reads the
    answer: it is there only where payloads are sealed.
    """

    model: str
    version: int
    flagged: tuple[PolicyHit, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    vault: dict[str, Any] | None = None


class GeneratePayload(Strict):
    """The part of a request that the worker needs, as stored in the job row.

    ``tool_style`` is how this model version writes calls, if there are tools that it may call. ``policy`` is there if
    it has something to say of outputs.
    """

    input: GenerateInput
    sampling: Sampling
    tool_style: ToolStyle | None = None
    policy: PinnedPolicy | None = None


class TopLogprob(Strict):
    """A token that could have come, and the natural logarithm of its probability. ``bytes`` are its own.

    ``token`` is its text, with U+FFFD for bytes that are half a character.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprob(TopLogprob):
    """The token that came, and the likeliest ones in its place, best first; it may be among them."""

    top_logprobs: tuple[TopLogprob, ...] = ()


class GenerateOutput(Strict):
    """What a generate job produced. ``text`` is complete; it is kept for a cancelled job too, as far as it came.

    If the model called tools, ``text`` is all that it wrote, ``content`` what is left of it beside the calls.
    ``logprobs`` are there if the job asked: of each token of the text, not of the one that ended it. ``policy`` is what
    rules found, ``text`` what they left.
    """

    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled", "deadline"]
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    policy: tuple[PolicyHit, ...] | None = None


class Usage(Strict):
    """What the job cost: tokens, time between acceptance and start, and time in the engine.

    ``cached_tokens`` of the input were found in the worker's prefix cache and not computed again.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    queue_ms: float
    first_token_ms: float | None = Field(None, description="from acceptance to the first token")
    compute_ms: float

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


class JobErrorBody(Strict):
    """Why a job failed, as its owner sees it."""

    code: str
    message: str
    retryable: bool = False
    attempt: int | None = None


class BlockedBody(JobErrorBody):
    """Why a job failed that a rule of the tenant's policy ended."""

    rule: str


P = TypeVar("P", bound=Strict)


def read_payload(kind: type[P], stored: Mapping[str, Any]) -> P:
    """Read a job's payload column. Raises InvalidRequest that names the fields and quotes no value."""
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        where = sorted({".".join(str(part) for part in problem["loc"]) for problem in problems})
        raise InvalidRequest(f"the stored payload cannot be read: {', '.join(where)}", code="invalid_payload") from None
