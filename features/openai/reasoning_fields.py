"""The fields for reasoning in OpenAI's requests, and what other servers call them, as the ``reasoning`` of a job."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from headrace.producer_api.http.unknown_fields import unsupported
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.reasoning import ReasoningEffort
from headrace.store.payloads.strict_model import Body

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
