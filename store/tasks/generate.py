"""The task ``generate``: a conversation or a prompt in, text out."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from headrace.store.payloads.conversation import (
    MAX_MESSAGES,
    MAX_TOOLS,
    MESSAGE_IMAGES,
    ChatMessage,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoiceMode,
    check_messages,
    images_of,
    urls_of,
)
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy, PolicyHit, TokenId
from headrace.store.payloads.prompt_reference import PromptReference, PromptUse, TemplatePlace
from headrace.store.payloads.reasoning import ReasoningFormat, ReasoningOptions
from headrace.store.payloads.retrieval import FileCitation, Retrieval
from headrace.store.payloads.sampling_params import MAX_NEW_TOKENS, Sampling, Truncated, Truncation
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.payloads.strict_model import Strict, Text
from headrace.store.payloads.template_variables import TemplateVariables
from headrace.store.tasks.task_spec import TaskSpec

MAX_SAMPLES = 16
"""Most answers to one prompt."""

MAX_CHOICES = 128
"""Most answers of one job, to all its prompts together."""

TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_NEW_TOKENS)]


class GenerateInput(Strict):
    """The input of the model: a conversation for its chat template, or a raw prompt as text or as token ids.

    Exactly one of them, or a ``template`` that makes one; its messages come before the others. Once it is filled in,
    the input is without it, and ``special_tokens`` is ``text``: no text of a message or prompt becomes a special token
    of the model. ``prompts`` are several raw prompts, all texts or all token ids. ``tools`` and ``reasoning``
    go with a conversation. ``tool_choice`` is ``auto`` if it is not given; ``parallel_tool_calls`` false keeps the
    answer to one call. ``chat_template_kwargs`` are further variables of the chat template. ``suffix`` is the text
    after the gap that the model fills, which begins after ``prompt``.
    """

    tools: Annotated[tuple[Tool, ...], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceMode | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    prompt: Text | None = None
    suffix: Text | None = None
    token_ids: TokenIds | None = None
    prompts: Annotated[tuple[Text | TokenIds, ...], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    reasoning: ReasoningOptions | None = None
    template: PromptReference | None = Field(None, description="a prompt template, whose messages come first")
    special_tokens: Literal["text"] | None = Field(None, description="`text`: those in messages and prompt stay text")

    @field_validator("prompts")
    @classmethod
    def _are_of_one_kind(cls, prompts: tuple[str | tuple[int, ...], ...] | None) -> Any:
        if len({isinstance(prompt, str) for prompt in prompts or ()}) > 1:
            raise ValueError("give texts or lists of token ids, not both in one request")
        return prompts

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
        check_messages(messages or ())
        return messages

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        raw = [self.prompt, self.token_ids, self.prompts]
        if self.template is not None:
            if raw.count(None) != 3 or self.suffix is not None:
                raise ValueError("a `template` goes with `messages` or alone: it makes the prompt itself")
            return self
        if [self.messages, *raw].count(None) != 3:
            raise ValueError("give exactly one of `messages`, `prompt`, `token_ids` and `prompts`, or a `template`")
        if self.special_tokens is not None and self.messages is None and self.prompt is None:
            raise ValueError("`special_tokens` goes with `messages` or `prompt` as text")
        if self.tools is not None and self.messages is None:
            raise ValueError("`tools` go with `messages`: a raw prompt has no place for them")
        if self.chat_template_kwargs and self.messages is None:
            raise ValueError("`chat_template_kwargs` go with `messages`: a raw prompt has no template")
        if self.suffix is not None and self.prompt is None:
            raise ValueError("`suffix` goes with `prompt` as text: it is what follows the gap")
        if self.reasoning is not None and self.messages is None:
            raise ValueError("`reasoning` goes with `messages`: what continues a raw prompt is one text")
        return self

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call now."""
        return () if self.tool_choice is ToolChoiceMode.NONE else self.tools or ()

    @property
    def each_prompt(self) -> tuple["GenerateInput", ...]:
        """The input, or one input for each of ``prompts``."""
        return (self,) if self.prompts is None else tuple(map(_one_prompt, self.prompts))


def _one_prompt(prompt: str | tuple[int, ...]) -> GenerateInput:
    return GenerateInput(prompt=prompt) if isinstance(prompt, str) else GenerateInput(token_ids=prompt)


class GenerateRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for generated text. ``n`` null is one answer to each prompt."""

    task: Literal["generate"] = "generate"
    input: GenerateInput
    n: int | None = Field(None, strict=True, ge=1, le=MAX_SAMPLES, description="answers to generate for each prompt")
    sampling: Sampling = Sampling()
    truncation: Truncation = Truncation.DISABLED
    retrieval: Retrieval | None = Field(None, description="passages of vector stores for the prompt")
    server_tools: ServerTools | None = Field(None, description="tools that the server calls for the model")
    _truncated: Truncated | None = PrivateAttr(None)
    _prompt_use: PromptUse | None = PrivateAttr(None)
    _template_place: TemplatePlace | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _has_turns(self) -> Self:
        is_raw = self.input.messages is None and self.input.template is None
        if self.truncation is Truncation.OLDEST_TURNS and is_raw:
            raise ValueError("`oldest_turns` goes with `messages`: cut a raw prompt by `left` or `middle`")
        return self

    @property
    def has_steps(self) -> bool:
        """True if it becomes a job of several steps."""
        return self.retrieval is not None or self.server_tools is not None

    @property
    def has_template(self) -> bool:
        """True if a prompt template has to be filled in."""
        return self.input.template is not None

    @property
    def takes_default_template(self) -> bool:
        """True for a conversation that names no prompt template, and was made from none."""
        return self.input.messages is not None and self.input.template is None and self._prompt_use is None

    @property
    def truncated(self) -> Truncated | None:
        """What was left out of the input; None if it is as it was sent."""
        return self._truncated

    @property
    def prompt_use(self) -> PromptUse | None:
        """The version of a prompt template that the input was made from; None if there is none."""
        return self._prompt_use

    @property
    def template_place(self) -> TemplatePlace | None:
        """Where the input has the template's messages; None without a template."""
        return self._template_place

    def filled_in(self, source: GenerateInput, use: PromptUse, place: TemplatePlace) -> Self:
        """Return the request with the input that was made from a prompt template."""
        filled = self.model_copy(update={"input": source})
        filled._prompt_use, filled._template_place = use, place  # noqa: SLF001 - a copy of this request
        return filled

    def shortened(self, source: GenerateInput, truncated: Truncated) -> Self:
        """Return the request with a shorter input, and what was left out of it now."""
        cut = self.model_copy(update={"input": source})
        cut._truncated = truncated.plus(self._truncated)  # noqa: SLF001 - a copy of this request
        return cut

    @field_validator("n")
    @classmethod
    def _is_not_too_many(cls, n: int | None, info: ValidationInfo) -> int | None:
        source: GenerateInput | None = info.data.get("input")
        num_choices = (n or 1) * (1 if source is None else len(source.each_prompt))
        if num_choices > MAX_CHOICES:
            raise ValueError(f"this makes {num_choices} answers: at most {MAX_CHOICES} are generated for one request")
        return n

    def called_urls(self) -> tuple[tuple[str, str], ...]:
        """Return the URLs of images, by their fields."""
        return urls_of(images_of(self.input), MESSAGE_IMAGES)

    def fixed_texts(self) -> tuple[str, ...]:
        """Return the stop strings, the texts that are never sampled, and the grammar."""
        sampling = self.sampling
        grammar = () if sampling.grammar is None else (sampling.grammar.text,)
        return (*sampling.stop, *(sampling.bad_words or ()), *grammar)

    def revealing_field(self) -> str | None:
        """Return the field for logprobs if the request asks for them: they show the tokens that a policy takes out."""
        return None if self.sampling.logprobs is None else "sampling.logprobs"

    def digest_fields(self) -> dict[str, Any]:
        """Return the sampling fields that the request spells out although they have their default value."""
        explicit_defaults = self.sampling.explicit_defaults()
        return {"explicit_defaults": explicit_defaults} if explicit_defaults else {}


class ToolStyle(StrEnum):
    """How a model writes tool calls (``prompts.tool_calls``)."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    JSON = "json"


class AnswerShape(StrEnum):
    """What the grammar allows in an answer with tools."""

    CALLS = "calls"  # calls and nothing else
    ANSWER_OR_CALLS = "answer_or_calls"  # the first characters decide


class GeneratePayload(Strict):
    """The part of a request that the worker needs, as stored in the job row.

    ``tool_style`` is the format in which this model version writes calls; None if it may call no tools.
    ``answer_shape`` is None if calls may be anywhere in the text. ``reasoning`` is None if all of the text is the
    answer. ``policy`` is None if no rule applies to the output. ``truncated`` is None if the input is as it was sent.
    ``n`` answers are generated for each prompt; None is one. ``template`` is None if the input came without one.
    """

    input: GenerateInput
    n: int | None = None
    sampling: Sampling
    tool_style: ToolStyle | None = None
    answer_shape: AnswerShape | None = None
    reasoning: ReasoningFormat | None = None
    policy: PinnedPolicy | None = None
    truncated: Truncated | None = None
    template: PromptUse | None = None

    @property
    def num_choices(self) -> int:
        """The number of answers to all prompts together."""
        return len(self.input.prompts or (None,)) * (self.n or 1)


class TopLogprob(Strict):
    """A possible token, and the natural logarithm of its probability. ``bytes`` are the token's own.

    ``token`` is its text, with U+FFFD for a part of a character.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprob(TopLogprob):
    """The chosen token, and the likeliest tokens in its place, the best first; it may be one of them."""

    top_logprobs: tuple[TopLogprob, ...] = ()


class PromptToken(Strict):
    """A token of the prompt; the first one has no ``logprob``, because nothing comes before it."""

    token: str
    logprob: float | None = None
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...] = ()


class PromptEcho(Strict):
    """The prompt as the model was given it; with logprobs also all its ``tokens``, special ones too."""

    text: str
    tokens: tuple[PromptToken, ...] | None = None


class GeneratedText(Strict):
    """One answer. ``text`` is complete; a cancelled job has the text up to then.

    If the model called tools, began a call that was cut off, or reasoned, ``text`` has the calls and the reasoning with
    its marks too, and ``content`` is the text without them. ``reasoning`` is the text between the marks. ``logprobs``,
    if the job asked for them, are of each token of the text, without the token that ended it. ``stop_text`` is the text
    of ``stop`` that ended the answer, if one did. ``policy`` lists the findings of rules; ``text`` is the text after
    the rules. ``prompt`` is there if the job asked for an ``echo``, ``annotations`` if it asked for passages.
    """

    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled", "deadline"]
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    stop_text: str | None = None
    policy: tuple[PolicyHit, ...] | None = None
    prompt: PromptEcho | None = None
    annotations: tuple[FileCitation, ...] | None = None


class GenerateOutput(GeneratedText):
    """The output of a generate job.

    If there are several answers, ``choices`` has all of them in order, and the other fields are ``text`` and
    ``finish_reason`` of the first one.
    """

    choices: tuple[GeneratedText, ...] | None = None


GENERATE = TaskSpec(
    name="generate",
    request=GenerateRequest,
    output=GenerateOutput,
    runner="torch",
    fake_runner="fake",
    urls=("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    purpose="generates text: use /v1/chat/completions, or the task generate",
    external_runners=("vllm", "sglang", "openai"),
    has_sampling=True,
    examples={
        "chat": {
            "summary": "A conversation",
            "value": {
                "model": "smollm2",
                "input": {"messages": [{"role": "user", "content": "Name three rivers."}]},
                "sampling": {"max_tokens": 64, "temperature": 0},
                "webhook": {"url": "https://example.com/hooks/headrace"},
                "metadata": {"order": "42"},
            },
        },
        "prompt": {
            "summary": "A raw prompt, in the background",
            "value": {
                "model": "smollm2@1",
                "input": {"prompt": "Once upon a time"},
                "sampling": {"max_tokens": 128, "seed": 7},
                "service_class": "batch",
                "deadline_ms": 600000,
            },
        },
    },
)
