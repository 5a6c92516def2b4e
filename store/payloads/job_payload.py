"""The fields of a job's request, payload and output that all tasks share.

The fields of one task are in ``store.tasks``. Limits that need no model (lengths, ranges, counts) are checked here. The
context window needs the tokenizer and is checked by ``prompts.tasks``. Unknown fields are refused, because a sampling
parameter that is silently ignored would change the answer.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError, field_validator

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.strict_model import Strict
from headrace.store.schema.event_types import JOB_EVENTS

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
WebhookUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class WebhookSpec(Strict):
    """A URL for this job's final event, beside the tenant's endpoints; only for these ``events``."""

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
    """Service class: the order of jobs in a backlog."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


CLASS_RANKS = {ServiceClass.INTERACTIVE: 0, ServiceClass.STANDARD: 1, ServiceClass.BATCH: 2}
"""The stored rank of a class; a lower rank is served first."""

CLASS_NAMES = {rank: name for name, rank in CLASS_RANKS.items()}


CHEAP: Final = "cheap"
"""The ``start_after`` of work that starts in the operator's cheap hours; ``features.cheap_hours`` makes it a time."""

StartAfter = Annotated[int, Field(ge=0)] | Literal["cheap"]

LONGEST_AHEAD = timedelta(days=366)
"""A job or a batch can be told to start at most this much later."""


def later_time(seconds: int) -> datetime | None:
    """Return the time of Unix seconds; None if it has passed. Raises InvalidRequest over ``LONGEST_AHEAD``."""
    now = datetime.now(UTC)
    if seconds > (now + LONGEST_AHEAD).timestamp():
        raise InvalidRequest(f"`start_after` is at most {LONGEST_AHEAD.days} days ahead", param="start_after")
    found = datetime.fromtimestamp(seconds, UTC)
    return found if found > now else None


class JobTerms(Strict):
    """What a job is to be like, whatever it computes."""

    service_class: ServiceClass = ServiceClass.STANDARD
    priority: int = Field(5, ge=0, le=9, description="0 goes first, 9 last, within the service class")
    deadline_ms: int | None = Field(
        None, ge=1, le=30 * 86_400_000, description="how long from acceptance, or from `start_after`, to an answer"
    )
    start_after: StartAfter | None = Field(
        None,
        description="Unix seconds before which it does not start, at most 366 days ahead; `cheap`: the operator's cheap"
        " hours, within `deadline_ms` from now; null: at once",
    )
    max_attempts: int | None = Field(None, ge=1, le=100)
    webhook: WebhookSpec | None = None
    user: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        None, description="your own user, for whom the usage is counted"
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(default_factory=dict)

    def starts_at(self) -> datetime | None:
        """Return the time before which it must not start; None if that is now, or has passed, or is not known yet.

        Raises InvalidRequest for a time too far ahead.
        """
        return later_time(self.start_after) if isinstance(self.start_after, int) else None

    def digest_fields(self) -> dict[str, Any]:
        """Return additional fields that equal requests share but their JSON form does not show."""
        return {}


class JobOrder(JobTerms):
    """The base of every task's request. A subclass narrows ``task`` and ``input`` and adds the task's own fields."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    task: str
    input: Strict

    def fixed_texts(self) -> tuple[str, ...]:
        """Return texts beside the input that cannot contain a placeholder; a policy can only refuse them."""
        return ()

    def revealing_field(self) -> str | None:
        """Return the field that requests parts of the output that a policy cannot change, or None."""
        return None

    @property
    def has_steps(self) -> bool:
        """True if it becomes a job of several steps."""
        return False

    @property
    def has_template(self) -> bool:
        """True if a prompt template has to be filled in."""
        return False

    def own_inputs(self) -> Any:
        """Return the ``TaskInputs`` of a request that only the API makes; None: it is prepared as its task says."""
        return None

    @property
    def reads_file(self) -> bool:
        """True if the worker reads a file for it, and applies the tenant's policy to the text."""
        return False

    def called_urls(self) -> tuple[tuple[str, str], ...]:
        """Return the URLs that the worker calls for the input, each behind the name of its field."""
        return ()


class PolicyHit(Strict):
    """The matches of a policy rule in a text: kind and number, never the matched text."""

    rule: str
    kind: str
    action: str
    count: int


EVERY_MODEL = ""
"""The model of a policy for all models without a policy of their own."""


class PinnedPolicy(Strict):
    """The policy version for the job's output, fixed when the job was accepted.

    ``model``: its model, or EVERY_MODEL. ``flagged``: hits in the input that did not block it. ``counts``:
    number of placeholders in the input, by kind. ``vault``: the original texts, to restore them in the answer; only if
    payloads are encrypted.
    """

    model: str
    version: int
    flagged: tuple[PolicyHit, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    vault: dict[str, Any] | None = None


class Usage(Strict):
    """Tokens of the job, time from acceptance to start, and time in the engine.

    ``cached_tokens``: input tokens found in the worker's prefix cache. ``reasoning_tokens``: output tokens that are
    reasoning. ``attempt_first_token_ms``: from the last claim to the first token of that attempt.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    queue_ms: float
    first_token_ms: float | None = Field(None, description="from acceptance to the first token")
    attempt_first_token_ms: float | None = None
    compute_ms: float

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


class JobErrorBody(Strict):
    """The error of a failed job."""

    code: str
    message: str
    retryable: bool = False
    attempt: int | None = None


class BlockedBody(JobErrorBody):
    """The error of a job that was blocked by a rule of the tenant's policy."""

    rule: str


P = TypeVar("P", bound=Strict)


def read_payload(kind: type[P], stored: Mapping[str, Any]) -> P:
    """Parse a job's payload column. Raises InvalidRequest, which names the fields and quotes no value."""
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        where = sorted({".".join(str(part) for part in problem["loc"]) for problem in error.errors()})
        raise InvalidRequest(f"the stored payload cannot be read: {', '.join(where)}", code="invalid_payload") from None
