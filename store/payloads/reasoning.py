"""How much a model reasons before it answers, and how its reasoning stands in the text of an answer."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from headrace.store.payloads.sampling_params import MAX_NEW_TOKENS
from headrace.store.payloads.strict_model import Strict

ReasoningBudget = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]


class ReasoningEffort(StrEnum):
    """How much the model reasons. ``none``: not at all. ``minimal``: as little as the model can."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"


class ReasoningOptions(Strict):
    """The reasoning that a request asks for; ``prompts.answer_reader`` says what a model can do.

    Without an ``effort`` the model reasons as much as it likes. At the budget of ``max_tokens`` the end of the
    reasoning is forced, and the answer begins. ``optional``: a model that cannot do what is asked does what it can.
    """

    effort: ReasoningEffort | None = None
    max_tokens: ReasoningBudget | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _has_something_to_bound(self) -> Self:
        if self.effort is ReasoningEffort.NONE and self.max_tokens is not None:
            raise ValueError("the effort `none` is no reasoning: leave out its `max_tokens`")
        return self


class ReasoningFormat(Strict):
    """How the reasoning of one job stands in its text: between ``opening`` and ``closing``, before the answer.

    ``direct``: what may stand before an answer without reasoning. ``is_open``: the prompt ends with the opening.
    ``is_forced``: the opening is forced, because a grammar for the answer would exclude it. ``max_tokens`` is the
    budget.
    """

    opening: str
    closing: str
    direct: str = ""
    is_open: bool = False
    is_forced: bool = False
    max_tokens: ReasoningBudget | None = None
