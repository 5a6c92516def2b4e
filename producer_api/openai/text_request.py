"""Fields shared by OpenAI's chat and text completions, and their conversion to a job.

An unsupported field that would change the answer is refused; other unknown fields are ignored. The bounds of values are
in ``store.tasks.generate``: a validation error on a job field is renamed to the field of the request.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError

from producer_api.openai.job_options import CLASSES, JOB_FIELDS, JobOptions, ServiceTier, job_fields
from producer_api.openai.response_format import ResponseFormat, StructuredOutputs, grammar_of
from producer_api.openai.unknown_fields import refuse_near_misses
from producer_api.server.errors import from_validation
from store.errors import HeadraceError, InvalidRequest
from store.payloads.strict_model import Body
from store.tasks.generate import GenerateRequest, Truncation


class StreamOptions(Body):
    """``include_usage`` asks for a last chunk with the token counts."""

    model_config = ConfigDict(extra="allow", frozen=True)

    include_usage: bool = False


IsHarmless = Callable[[object], bool]


def is_one_of(*harmless: object) -> IsHarmless:
    """Return a predicate that accepts these values and null: values that have no effect on the answer."""
    return lambda value: value is None or value in harmless


# Unsupported fields that would change the answer, with the values that have no effect.
REFUSED: Mapping[str, IsHarmless] = {
    "n": is_one_of(1),
    "best_of": is_one_of(1),
    "prompt_logprobs": is_one_of(0, False),
    "logit_bias": is_one_of({}),
    "truncate_prompt_tokens": is_one_of(),
    "min_p": is_one_of(0),
    "typical_p": is_one_of(1),
    "min_tokens": is_one_of(0),
    "length_penalty": is_one_of(1),
    "use_beam_search": is_one_of(False),
    "stop_token_ids": is_one_of([]),
    "include_stop_str_in_output": is_one_of(False),
    "bad_words": is_one_of([]),
    "allowed_token_ids": is_one_of(),
    "logits_processors": is_one_of([]),
    "echo": is_one_of(False),
}
# vLLM's old names of fields in ``structured_outputs``.
_MOVED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_INSTEAD = {
    "functions": "it is deprecated, give `tools` instead",
    "function_call": "it is deprecated, give `tool_choice` and `tools` instead",
}


class TextRequest(Body):
    """The fields that chat and text completions share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    input_field: ClassVar[str]
    refused: ClassVar[Mapping[str, IsHarmless]] = REFUSED

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="an extension, same as in vLLM")
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = Field(None, description="an extension, same as in vLLM")
    ignore_eos: bool | None = Field(None, description="an extension, same as in vLLM")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="an extension, same as in vLLM")
    metadata: dict[str, str] | None = None
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
)


def job_of(request: TextRequest, source: Mapping[str, Any], logprobs: int | None) -> GenerateRequest:
    """Return the job for the request, with ``source`` as its input.

    Raises InvalidRequest that names the request's field.
    """
    _refuse_unsupported(request)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true", param="stream_options")
    body = {
        "model": request.model,
        "input": source,
        "sampling": _sampling(request) | {"logprobs": logprobs},
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


def unsupported(message: str, param: str) -> InvalidRequest:
    """Return the error for an unsupported field."""
    return InvalidRequest(message, code="unsupported_parameter", param=param)


def _refuse_unsupported(request: TextRequest) -> None:
    for name, value in (request.model_extra or {}).items():
        is_harmless = request.refused.get(name)
        if is_harmless is not None and not is_harmless(value):
            raise unsupported(f"`{name}` is not supported: {_INSTEAD.get(name, 'leave it out')}", name)
        if name in _MOVED and value is not None:
            raise unsupported(f"`{name}` is not supported: send `structured_outputs.{_MOVED[name]}`", name)
    refuse_near_misses(request, {*request.refused, *_MOVED})


def _sampling(request: TextRequest) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(request, name) for name in _SAMPLING}
    values["max_tokens"] = request.token_limit[1]
    values["stop"] = (request.stop,) if isinstance(request.stop, str) else request.stop
    values["grammar"] = grammar_of(request.response_format, request.structured_outputs)
    return {name: value for name, value in values.items() if value is not None}


def as_sent(error: HeadraceError, request: TextRequest) -> HeadraceError:
    """Rename the job field in an error to the request's field."""
    if error.param is None:
        return error
    name = _name_in_request(error.param, request)
    error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
    error.param = name
    return error


def _name_in_request(param: str, request: TextRequest) -> str:
    if param in ("sampling.max_tokens", "max_tokens"):
        return request.token_limit[0]
    if param == "sampling":  # the only rule that involves two fields
        return "ignore_eos"
    if param in ("input", "input.token_ids"):
        return request.input_field
    if param.startswith("sampling.grammar"):
        return "response_format" if request.structured_outputs is None else "structured_outputs"
    if param.partition(".")[0] in JOB_FIELDS:
        return f"job.{param}"
    return param.removeprefix("sampling.").removeprefix("input.")
