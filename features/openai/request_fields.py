"""Fields that OpenAI's chat and text completions share.

The bounds of values are in ``store.tasks.generate``: a validation error on a job field is renamed to the field
of the request.

Structured outputs are OpenAI's ``response_format`` and vLLM's ``structured_outputs``, converted to a grammar:
``response_format`` is for JSON, ``structured_outputs`` also for regex, choice and grammar. The grammar is compiled with
the model's tokenizer when the job is submitted; a grammar that does not compile is refused then.

``ReasoningField`` and what other servers call its fields become the ``reasoning`` of a job.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from headrace.features.openai.foreign_fields import FOREIGN, INSTEAD
from headrace.producer_api.http.job_options import (
    CLASSES,
    JOB_FIELDS,
    IsHarmless,
    JobOptions,
    MetadataText,
    ServiceTier,
    job_fields,
    refuse_near_misses,
    refuse_unsupported,
    unsupported,
)
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.payloads.reasoning import ReasoningEffort
from headrace.store.payloads.sampling_params import MAX_GRAMMAR_CHARS, GrammarKind, GrammarSpec, Truncation
from headrace.store.payloads.strict_model import Body
from headrace.store.tasks.generate import MAX_SAMPLES, GenerateRequest

_SUMMARIES = (None, "auto", "detailed")


class ReasoningField(Body):
    """How much the model reasons before it answers, and whether its reasoning is shown as a summary."""

    model_config = ConfigDict(extra="allow", frozen=True)

    effort: ReasoningEffort | None = None
    summary: str | None = Field(None, description="auto or detailed: all of the reasoning; of responses only")
    generate_summary: str | None = Field(None, description="the older name of `summary`")
    max_tokens: int | None = Field(
        None, description="an extension, same as in OpenRouter: the most tokens of reasoning"
    )
    enabled: bool | None = Field(None, strict=True, description="an extension, same as in OpenRouter")


def check_reasoning(field: ReasoningField | None) -> None:
    """Raise InvalidRequest for a part of `reasoning` that is not supported."""
    if field is None:
        return
    for name in ("summary", "generate_summary"):
        if getattr(field, name) not in _SUMMARIES:
            message = "the reasoning is shown as it is, and not shortened: send auto or detailed"
            raise unsupported(f"`reasoning.{name}` is not supported: {message}", f"reasoning.{name}")
    for name, value in (field.model_extra or {}).items():
        if value and name in ("exclude", "mode"):
            raise unsupported(f"`reasoning.{name}` is not supported: leave it out", f"reasoning.{name}")


def shows_summary(field: ReasoningField | None) -> bool:
    """Return True if the reasoning is shown as its own summary."""
    return field is not None and (field.summary or field.generate_summary) is not None


def check_verbosity(verbosity: str | None, param: str) -> None:
    """Raise InvalidRequest for another verbosity than the default: no model here knows any."""
    if verbosity not in (None, "medium"):
        raise unsupported(f"`{param}` is not supported: put it into the instructions", param)


def reasoning_of(field: ReasoningField | None, others: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the ``reasoning`` of the job's input, None if the request says nothing.

    ``others``: fields beside `reasoning`, by their names: efforts, switches (booleans) and budgets (numbers). Raises
    InvalidRequest if two of them differ.
    """
    given = {} if field is None else {f"reasoning.{name}": getattr(field, name) for name in _OURS}
    named = {name: value for name, value in {**given, **(others or {})}.items() if value is not None}
    found: dict[str, Any] = {}
    for name, value in named.items():
        if value is True:
            continue  # to reason is what any effort or budget means
        ours = "max_tokens" if type(value) is int else "effort"
        wanted = ReasoningEffort.NONE if value is False else value
        if found.setdefault(ours, wanted) != wanted:
            raise InvalidRequest(f"`{name}` says something else than another field about reasoning", param=name)
    if found.get("effort") is ReasoningEffort.NONE and True in named.values():
        raise InvalidRequest("reasoning is switched on and off at once", param=next(iter(named)))
    return found if named else None


_OURS = ("effort", "max_tokens", "enabled")


class JsonSchemaFormat(Body):
    """A named schema. The answer always follows it strictly, with or without ``strict``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    schema_: dict[str, Any] | StrictBool | None = Field(None, alias="schema")
    strict: StrictBool | None = None
    description: str | None = None


class ResponseFormat(Body):
    """Text, any JSON object, or JSON that matches a schema."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | StrictBool | None = Field(
        None, alias="schema", description="an extension: of json_object, the schema of the object, as in llama.cpp"
    )
    value: dict[str, Any] | StrictBool | None = Field(
        None, description="an extension: the same by the name of text-generation-inference"
    )


class StructuredOutputs(Body):
    """vLLM's constraint on the answer: exactly one of the four."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    json_: dict[str, Any] | StrictBool | str | None = Field(
        None, alias="json", description="a JSON schema, as an object or as text"
    )
    regex: str | None = Field(None, description="in the syntax of Rust's regex crate")
    choice: tuple[str, ...] | None = Field(None, description="the answer is one of these")
    grammar: str | None = Field(None, description="a Lark grammar in llguidance's dialect")


# vLLM's old names of the fields in ``structured_outputs``.
GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def structured_of(structured: StructuredOutputs | None, extra: Mapping[str, Any]) -> StructuredOutputs | None:
    """Return the constraint on the answer, also if it has vLLM's old names among the ``extra`` fields of the request.

    Raises InvalidRequest if the two differ.
    """
    given = {name: extra[name] for name in GUIDED if extra.get(name) is not None}
    if not given:
        return structured
    first = next(iter(given))
    if len(given) > 1:
        raise InvalidRequest(f"give exactly one of {', '.join(given)}: an answer follows one grammar", param=first)
    try:
        guided = StructuredOutputs.model_validate({GUIDED[name]: value for name, value in given.items()})
    except ValidationError as error:
        raise InvalidRequest(f"`{first}` cannot be read: {error.errors()[0]['msg']}", param=first) from error
    if structured is not None and structured != guided:
        raise InvalidRequest(
            f"`{first}` and `structured_outputs` differ: leave out `{first}`, the older name", param=first
        )
    return guided


def grammar_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None) -> GrammarSpec | None:
    """Return the requested grammar, None for free text. Raises InvalidRequest."""
    by_format = None if response_format is None else _of_format(response_format)
    if structured is None:
        return by_format
    if by_format is not None:
        raise InvalidRequest(
            "give one of `response_format` and `structured_outputs`: an answer follows one grammar",
            param="structured_outputs",
        )
    return _of_structured(structured)


def json_grammar(schema: dict[str, Any] | bool | str, param: str) -> GrammarSpec:
    """Return the grammar of a JSON schema. Raises InvalidRequest if it is too long or too deeply nested."""
    try:
        # Keep the schema's key order: it is the order of properties in the answer.
        text = schema if isinstance(schema, str) else json.dumps(schema)
    except RecursionError:
        raise InvalidRequest(f"`{param}` is nested too deeply", code="invalid_json_schema", param=param) from None
    return _spec(GrammarKind.JSON_SCHEMA, text, param)


def _of_format(asked: ResponseFormat) -> GrammarSpec | None:
    match asked.type:
        case "text":
            return None
        case "json_object":
            return _of_object(asked)
        case "json_schema":
            schema = None if asked.json_schema is None else asked.json_schema.schema_
            if schema is None:
                param = "response_format.json_schema.schema"
                raise InvalidRequest(f"`{param}` is required", param=param)
            return json_grammar(schema, "response_format.json_schema.schema")
        case other:
            raise InvalidRequest(
                f"`response_format.type` {other[:40]!r} is not supported: one of text, json_object, json_schema",
                code="unsupported_parameter",
                param="response_format.type",
            )


def _of_object(asked: ResponseFormat) -> GrammarSpec:
    """Return the grammar of any JSON object, or of one whose schema stands beside the type."""
    inner = None if asked.json_schema is None else asked.json_schema.schema_
    beside = {"schema": asked.schema_, "value": asked.value, "json_schema.schema": inner}
    given = {f"response_format.{name}": schema for name, schema in beside.items() if schema is not None}
    if len(given) > 1:
        first, second = list(given)[:2]
        raise InvalidRequest(f"give one of `{first}` and `{second}`: an answer follows one schema", param=second)
    param, schema = next(iter(given.items()), ("response_format", {"type": "object"}))
    return json_grammar(schema, param)


def _of_structured(asked: StructuredOutputs) -> GrammarSpec:
    given = {name: value for name, value in asked if value is not None}
    if len(given) != 1:
        raise InvalidRequest(
            "`structured_outputs` takes exactly one of json, regex, choice and grammar", param="structured_outputs"
        )
    ((name, value),) = given.items()
    param = f"structured_outputs.{name.removesuffix('_')}"
    match name:
        case "json_":
            return json_grammar(value, param)
        case "choice":
            return _spec(GrammarKind.CHOICE, json.dumps(value, ensure_ascii=False), param)
        case _:
            return _spec(GrammarKind.REGEX if name == "regex" else GrammarKind.LARK, value, param)


def _spec(kind: GrammarKind, text: str, param: str) -> GrammarSpec:
    if not 1 <= len(text) <= MAX_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"`{param}` has {len(text)} characters as text, and 1 to {MAX_GRAMMAR_CHARS} are accepted",
            code="invalid_json_schema" if kind is GrammarKind.JSON_SCHEMA else None,
            param=param,
        )
    return GrammarSpec(kind=kind, text=text)


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
