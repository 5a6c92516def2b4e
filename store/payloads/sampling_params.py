"""Sampling parameters of requests, and their defaults for each model version.

    the request ▸ defaults of the version, set by the operator ▸ the model's generation_config.json ▸ ``Sampling``

For each field the first of these that sets it is used. The API resolves them when it accepts a job and stores the
result in the job's payload, so that all attempts use the same values.

``Truncation`` says what is left out of an input that is too long for its model.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator, model_validator

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.strict_model import Strict

MAX_NEW_TOKENS = 131_072
MAX_TOP_LOGPROBS = 20
MAX_GRAMMAR_CHARS = 65_536

StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=100_000)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
BiasedToken = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class SamplingDefaults(Strict):
    """Defaults of a model version; null: not set."""

    temperature: Temperature | None = Field(None, description="0 is greedy")
    top_p: TopP | None = Field(None, description="1 is off")
    top_k: TopK | None = Field(None, description="0 is off")
    repetition_penalty: RepetitionPenalty | None = Field(None, description="1 is off")
    presence_penalty: Penalty | None = Field(None, description="0 is off")
    frequency_penalty: Penalty | None = Field(None, description="0 is off")

    def given(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return self.model_dump(exclude_none=True)

    def under(self, better: Self) -> Self:
        """Return these defaults, overridden by the fields that ``better`` sets."""
        return self.model_copy(update=better.given())


class GrammarKind(StrEnum):
    """Syntax of a grammar."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"  # of Rust's regex crate: no look-around, no back-references
    LARK = "lark"  # llguidance's dialect
    CHOICE = "choice"  # a JSON array of the texts to choose from


class GrammarSpec(Strict):
    """A grammar for the answer. ``prompts.grammar`` checks that the model can follow it."""

    kind: GrammarKind
    text: Annotated[str, StringConstraints(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


def _set_by_model(schema: dict[str, Any]) -> None:
    """Remove the default from the schema: a generated client would send it and override the model's default."""
    schema.pop("default", None)


class Sampling(Strict):
    """Sampling parameters. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    Defaults of temperature, top_p, top_k and the penalties are those of the model version. The defaults here are used
    if the version sets none (``store.payloads.sampling_params``).

    ``max_tokens`` None: the rest of the model's context window, at most 1,024.
    Penalties are those of the OpenAI API (presence, frequency) and of CTRL, Keskar et al. 2019 (repetition).
    ``logprobs``: return the log probability of each token, and of this number of most likely tokens. With a ``grammar``
    an answer follows it; an answer that ends at ``max_tokens`` is a prefix of one that does.
    ``min_p``: tokens with less than this share of the most likely token's probability, after temperature, are left out.
    ``min_tokens``: before it neither an end token nor one of ``stop_token_ids`` is sampled; a stop string still ends
    the answer. ``logit_bias`` is added to the logits of tokens, before the penalties. ``bad_words``: the tokens of
    these texts, with a space before them and without, are never sampled in a row. ``echo``: the output has the prompt
    too, and with ``logprobs`` the log probability of each of its tokens; ``max_tokens`` 0 is for that alone.
    """

    echo: bool | None = None
    max_tokens: int | None = Field(None, ge=0, le=MAX_NEW_TOKENS)
    temperature: Temperature = Field(1.0, json_schema_extra=_set_by_model)
    top_p: TopP = Field(1.0, json_schema_extra=_set_by_model)
    top_k: TopK = Field(0, json_schema_extra=_set_by_model)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[tuple[StopText, ...], Field(max_length=16)] = ()
    repetition_penalty: RepetitionPenalty = Field(1.0, json_schema_extra=_set_by_model)
    presence_penalty: Penalty = Field(0.0, json_schema_extra=_set_by_model)
    frequency_penalty: Penalty = Field(0.0, json_schema_extra=_set_by_model)
    ignore_eos: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    grammar: GrammarSpec | None = None
    # Null is off: a worker of an older release reads a payload without them.
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_NEW_TOKENS)] | None = None
    stop_token_ids: Annotated[tuple[BiasedToken, ...], Field(max_length=64)] | None = None
    logit_bias: Annotated[dict[BiasedToken, Bias], Field(max_length=1024)] | None = None
    bad_words: Annotated[tuple[StopText, ...], Field(max_length=64)] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _has_an_answer(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value == 0 and not info.data.get("echo"):
            raise ValueError("it should be greater than or equal to 1: 0 is for `echo`")
        return value

    @model_validator(mode="after")
    def _ends_with_its_grammar(self) -> Self:
        for name in ("ignore_eos", "min_tokens"):
            if self.grammar is not None and getattr(self, name):
                raise ValueError(f"an answer that follows a grammar ends with it: leave out `{name}`")
        return self

    @property
    def scores_prompt(self) -> bool:
        """True if the output has the log probabilities of the prompt's tokens."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def named_tokens(self) -> dict[str, tuple[int, ...]]:
        """The token ids of the request, by their field."""
        return {"stop_token_ids": self.stop_token_ids or (), "logit_bias": tuple(self.logit_bias or ())}

    def explicit_defaults(self) -> list[str]:
        """Return the fields that the request sets to their default.

        Such a request differs from one that leaves them out: there the defaults of the model version are used.
        """
        blank = {name: Sampling.model_fields[name].default for name in SamplingDefaults.model_fields}
        return sorted(n for n, value in blank.items() if n in self.model_fields_set and getattr(self, n) == value)

    def with_defaults(self, defaults: SamplingDefaults) -> Self:
        """Return the parameters with the version's defaults for fields that the request left out."""
        return self.model_copy(update={n: v for n, v in defaults.given().items() if n not in self.model_fields_set})


def parse_defaults(text: str) -> SamplingDefaults:
    """Parse ``temperature=0.2,top_p=0.9``; the empty text is empty. Raises InvalidRequest, which names the field."""
    given = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    known = ", ".join(SamplingDefaults.model_fields)
    for name, value in given.items():
        if name not in SamplingDefaults.model_fields:
            raise InvalidRequest(f"{name!r} has no default to set: use NAME=VALUE of {known}", param="sampling")
        try:
            SamplingDefaults.model_validate({name: value})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InvalidRequest(f"{name}={value}: {reason[:1].lower()}{reason[1:]}", param="sampling") from None
    return SamplingDefaults.model_validate(given)


def read_generation(generation: Mapping[str, Any]) -> SamplingDefaults:
    """Return the defaults of a ``generation_config.json``. ``do_sample`` false means greedy.

    Unknown fields, and values out of the range of requests, are left out.
    """
    defaults = SamplingDefaults()
    for name in SamplingDefaults.model_fields:
        try:
            defaults = defaults.under(SamplingDefaults.model_validate({name: generation.get(name)}))
        except ValidationError:
            continue
    return defaults.model_copy(update={"temperature": 0.0}) if generation.get("do_sample") is False else defaults


class Truncation(StrEnum):
    """The treatment of an input that leaves no room for an answer in the context window (``prompts.truncation``).

    ``disabled`` and ``auto`` are OpenAI's names of ``refuse`` and ``oldest_turns``.
    """

    REFUSE = "refuse"
    DISABLED = "disabled"
    OLDEST_TURNS = "oldest_turns"
    AUTO = "auto"
    LEFT = "left"
    MIDDLE = "middle"

    @property
    def refuses(self) -> bool:
        """True if nothing is left out."""
        return self in (Truncation.REFUSE, Truncation.DISABLED)

    @property
    def cuts_texts(self) -> bool:
        """True if a text may be cut, not only turns of a conversation left out."""
        return self in (Truncation.LEFT, Truncation.MIDDLE)


class Truncated(Strict):
    """What was left out of an input: prompt tokens, and whole turns of a conversation."""

    strategy: Truncation = Field(description="the `truncation` of the request")
    tokens: int = Field(description="prompt tokens that were left out")
    turns: int = Field(0, description="turns of the conversation that were left out as a whole")

    def as_header(self) -> str:
        """Return it as the value of a header."""
        return f"{self.strategy}; tokens={self.tokens}; turns={self.turns}"

    def plus(self, earlier: "Truncated | None") -> "Truncated":
        """Return both together."""
        if earlier is None:
            return self
        return self.model_copy(update={"tokens": self.tokens + earlier.tokens, "turns": self.turns + earlier.turns})
