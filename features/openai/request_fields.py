"""Fields that OpenAI's chat and text completions share.

The bounds of values are in ``store.tasks.generate``: a validation error on a job field is renamed to the field
of the request.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from headrace.features.openai.foreign_fields import FOREIGN, INSTEAD
from headrace.features.openai.response_format import (
    GUIDED,
    ResponseFormat,
    StructuredOutputs,
    grammar_of,
    structured_of,
)
from headrace.producer_api.http.job_options import (
    CLASSES,
    JOB_FIELDS,
    JobOptions,
    MetadataText,
    ServiceTier,
    job_fields,
)
from headrace.producer_api.http.unknown_fields import IsHarmless, refuse_near_misses, refuse_unsupported, unsupported
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.payloads.strict_model import Body
from headrace.store.payloads.truncation import Truncation
from headrace.store.tasks.generate import MAX_SAMPLES, GenerateRequest

BATCH_TIER = "flex"
"""The ``service_tier`` of every line of a batch, whatever it has asked for."""


def turns_beside(messages: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...]:
    """Return the messages of a request; without its field ``prompt``, a template, there must be some."""
    if not messages and info.data.get("prompt") is None:
        if messages is None:
            raise PydanticCustomError("missing", "Field required")
        raise ValueError("there must be at least 1 message, or a `prompt`")
    return messages or ()


class StreamOptions(Body):
    """``include_usage`` asks for a last chunk with the token counts."""

    model_config = ConfigDict(extra="allow", frozen=True)

    include_usage: bool = False


class TextRequest(Body):
    """The fields that chat and text completions share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    input_field: ClassVar[str]
    refused: ClassVar[Mapping[str, IsHarmless]] = FOREIGN

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: StrictInt | None = Field(None, description=f"answers to generate for each prompt, 1 to {MAX_SAMPLES}")
    best_of: StrictInt | None = Field(None, description="the same as `n`")
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="an extension, same as in vLLM")
    seed: int | None = Field(
        None, validation_alias=AliasChoices("seed", "random_seed"), description="Mistral's `random_seed` is the same"
    )
    stop: str | tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = Field(None, description="an extension, same as in vLLM")
    ignore_eos: bool | None = Field(None, description="an extension, same as in vLLM")
    min_p: float | None = None
    min_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: tuple[str, ...] | None = Field(None, description="an extension, same as in vLLM")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="an extension, same as in vLLM")
    metadata: dict[str, MetadataText] | None = None
    user: str | None = Field(None, description="your end user; usage can be grouped by it")
    safety_identifier: str | None = Field(None, description="the newer name of `user`; wins over it")
    truncation: Truncation | None = None
    service_tier: ServiceTier | None = None
    job: JobOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """True if a stream must end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """Name and value of the field that limits the answer's tokens."""
        return "max_tokens", self.max_tokens


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "min_p",
    "min_tokens",
    "stop_token_ids",
    "logit_bias",
    "bad_words",
)


def job_of(
    request: TextRequest, source: Mapping[str, Any], logprobs: int | None, *, echo: bool = False
) -> GenerateRequest:
    """Return the job for the request, with ``source`` as its input; ``echo``: its output has the prompt too.

    Raises InvalidRequest that names the request's field.
    """
    _refuse_unsupported(request)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true", param="stream_options")
    _check_best_of(request)
    body = {
        "model": request.model,
        "input": source,
        "n": request.n,
        "sampling": _sampling(request) | {"logprobs": logprobs} | ({"echo": True} if echo else {}),
        "service_class": CLASSES[request.service_tier],
        "truncation": request.truncation or Truncation.DISABLED,
        "metadata": request.metadata or {},
        "user": request.safety_identifier or request.user or None,
        **job_fields(request.job),
    }
    try:
        return GenerateRequest.model_validate(body)
    except ValidationError as error:
        complaint = from_validation(error.errors(include_input=False))
        raise as_sent(complaint, request) from error


def _check_best_of(request: TextRequest) -> None:
    """Raise InvalidRequest if more answers are to be generated than returned, or fewer."""
    n = 1 if request.n is None else request.n
    if request.best_of is None or request.best_of == n:
        return
    if request.best_of < n:
        raise InvalidRequest(f"`best_of` is {request.best_of} and `n` is {n}: leave out `best_of`", param="best_of")
    raise unsupported(
        f"`best_of` over `n` is not supported: send {request.best_of} as `n` with `logprobs`, and choose an answer",
        "best_of",
    )


def _refuse_unsupported(request: TextRequest) -> None:
    refuse_unsupported(request, request.refused, INSTEAD)
    refuse_near_misses(request, {*request.refused, *GUIDED})


def _sampling(request: TextRequest) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(request, name) for name in _SAMPLING}
    values["max_tokens"] = request.token_limit[1]
    values["stop"] = (request.stop,) if isinstance(request.stop, str) else request.stop
    values["grammar"] = grammar_of(
        request.response_format, structured_of(request.structured_outputs, request.model_extra or {})
    )
    if request.top_k == -1:
        values["top_k"] = 0
    return {name: value for name, value in values.items() if value is not None}


def as_sent(error: HeadraceError, request: TextRequest) -> HeadraceError:
    """Rename the job field in an error to the request's field."""
    if error.param is None:
        return error
    name = _name_in_request(error.param, request)
    error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
    error.param = name
    return error


def _grammar_field(request: TextRequest) -> str:
    if request.structured_outputs is not None:
        return "structured_outputs"
    return next((name for name in GUIDED if (request.model_extra or {}).get(name) is not None), "response_format")


def _reasoning_field(param: str, request: TextRequest) -> str:
    """Return the field that says what is wrong about reasoning: the first that the request has."""
    names = ("thinking_budget",) if param.endswith("max_tokens") else ("reasoning_effort", "enable_thinking")
    given = (name for name in names if getattr(request, name, None) is not None)
    return param.removeprefix("input.") if getattr(request, "reasoning", None) else next(given, "reasoning")


def _name_in_request(param: str, request: TextRequest) -> str:
    if param in ("sampling.max_tokens", "max_tokens"):
        return request.token_limit[0]
    if param in ("input", "input.token_ids") or param.startswith("input.prompts"):
        return request.input_field + param.removeprefix("input").removeprefix(".token_ids").removeprefix(".prompts")
    if param.startswith("sampling.grammar"):
        return _grammar_field(request)
    if param.partition(".")[0] in JOB_FIELDS:
        return f"job.{param}"
    if param == "sampling":  # the only rule that involves two fields
        return "ignore_eos" if request.ignore_eos else "min_tokens"
    if param.startswith("input.reasoning"):
        param = _reasoning_field(param, request)
    param = param.replace("input.template", "prompt", 1)
    return param.removeprefix("sampling.").removeprefix("input.")
