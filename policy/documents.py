"""The policy document: a versioned list of rules, as its owner writes it.

For each finding, the first rule for its kind and stage decides. A finding without a rule passes.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, model_validator

from headrace.policy.recognisers.recogniser import FOUND_BY_NAME, Kind
from headrace.policy.schemas import check_schema
from headrace.policy.text.normalisation import normalise
from headrace.policy.text.patterns import BadPattern, parse_pattern

MAX_PATTERN_MATCH_CHARS = 1024
"""The longest match that a deny pattern may have. A stream may have to hold back as many characters."""


class Action(StrEnum):
    """The effect of a rule on a finding."""

    # Let pass, even if a later rule has another action.
    ALLOW = "allow"
    # Let pass, and list it in the verdict.
    FLAG = "flag"
    # Stars; of numbers, the last four characters stay.
    MASK = "mask"
    # A placeholder, such as <EMAIL_1>, the same for the same value throughout a job.
    REDACT = "redact"
    # The job ends.
    BLOCK = "block"


class Stage(StrEnum):
    """The texts that a rule applies to."""

    INPUT = "input"
    OUTPUT = "output"
    BOTH = "both"


class _FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Phrase = Annotated[str, StringConstraints(min_length=1, max_length=256)]
PatternText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]


class DenyList(_FrozenModel):
    """Texts that must not occur. Case is ignored.

    ``phrases`` are found as whole words unless ``inside_words``. ``patterns`` are regular expressions without
    look-around and back-references, and with a maximum length: ``\\s{1,8}`` rather than ``\\s+``.
    """

    phrases: Annotated[tuple[Phrase, ...], Field(max_length=100_000), FailFast()] = ()
    patterns: Annotated[tuple[PatternText, ...], Field(max_length=1000), FailFast()] = ()
    inside_words: bool = False

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.phrases and not self.patterns:
            raise ValueError("a deny list needs `phrases` or `patterns`")
        for number, pattern in enumerate(self.patterns):
            _check_pattern(number, pattern)
        return self


def _check_pattern(number: int, pattern: str) -> None:
    try:
        longest = parse_pattern(normalise(pattern).text).longest
    except BadPattern as error:
        raise ValueError(f"`patterns[{number}]`: {error}") from None
    if longest is None:
        raise ValueError(
            f"`patterns[{number}]` has matches of any length: give *, + and {{n,}} a bound, such as {{0,64}}"
        )
    if not 0 < longest <= MAX_PATTERN_MATCH_CHARS:
        raise ValueError(f"`patterns[{number}]` must match 1 to {MAX_PATTERN_MATCH_CHARS} characters, not {longest}")


class Rule(_FrozenModel):
    """One rule: a condition, the stage and the action. Exactly one of the conditions is given."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    action: Action
    stage: Stage = Stage.BOTH
    kinds: Annotated[tuple[Kind, ...], Field(max_length=32), FailFast()] = ()
    deny: DenyList | None = None
    max_chars: int | None = Field(None, ge=1, le=10_000_000, description="longer texts are blocked")
    categories: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], FailFast()] = Field(
        default_factory=dict, description="not possible any more: a rule with it is refused"
    )
    json_schema: dict[str, Any] | None = Field(None, description="outputs are JSON that this schema allows")
    languages: Annotated[tuple[Language, ...], Field(max_length=64), FailFast()] = Field(
        (), description="inputs are in one of these (ISO 639-1), as far as their language is known"
    )
    restore: bool = Field(False, description="put the values back where the model's answer names their placeholders")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        given = [bool(one) for one in (self.kinds, self.categories, self.languages)]
        given += [one is not None for one in (self.deny, self.max_chars, self.json_schema)]
        if sum(given) != 1:
            conditions = "`kinds`, `deny`, `max_chars`, `languages` and `json_schema`"
            raise ValueError(f"give exactly one of {conditions}")
        if self.max_chars is not None and self.action is not Action.BLOCK:
            raise ValueError("`max_chars` can only block")
        if self.needs_all and self.action not in (Action.BLOCK, Action.FLAG):
            raise ValueError("`languages` and `json_schema` are about whole texts: `action` is block or flag")
        if self.languages and self.stage is not Stage.INPUT:
            raise ValueError("`languages` are those of what comes in: `stage` input")
        if self.json_schema is not None:
            if self.stage is not Stage.OUTPUT:
                raise ValueError("`json_schema` is for what comes back: `stage` output")
            check_schema(self.json_schema)
        if FOUND_BY_NAME.intersection(self.kinds) and self.stage is not Stage.INPUT:
            raise ValueError("names are found in whole texts only: `stage` input")
        if self.restore and (self.action is not Action.REDACT or self.stage is Stage.OUTPUT):
            raise ValueError("`restore` is for what is redacted on its way in")
        return self

    @property
    def needs_all(self) -> bool:
        """True if the rule applies to a text as a whole."""
        return bool(self.categories or self.languages) or self.json_schema is not None

    def is_for(self, stage: Stage) -> bool:
        """Return True if the rule applies to texts of this stage."""
        return self.stage in (stage, Stage.BOTH)


class PolicyDocument(_FrozenModel):
    """A policy. ``version`` is the version of the document format."""

    version: Literal[1] = 1
    rules: Annotated[tuple[Rule, ...], Field(max_length=256), FailFast()]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [rule.id for rule in self.rules]
        if twice := next((one for one in ids if ids.count(one) > 1), None):
            raise ValueError(f"two rules are called {twice}")
        return self

    def rules_for(self, stage: Stage) -> Iterator[Rule]:
        """Yield the rules that apply to texts of this stage, in order."""
        return (rule for rule in self.rules if rule.is_for(stage))
