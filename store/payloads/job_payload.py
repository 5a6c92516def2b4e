"""The parts of a job's request, payload and output that every task has.

The fields of one task are in ``store.tasks``. Bounds that need no model (lengths, ranges, counts) are checked here, at
the edge; the context window needs the model's tokenizer and is checked by ``prompts.tasks``. Unknown fields are
refused, because a sampling field that is silently dropped changes the answer.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError, field_validator

from store.errors import InvalidRequest
from store.payloads.strict_model import Strict
from store.schema.webhook_events import JOB_EVENTS

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
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


class JobOrder(Strict):
    """The base of every task's request. A subclass narrows ``task`` and ``input`` and adds the task's own fields."""

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
    task: str
    input: Strict

    def fixed_texts(self) -> tuple[str, ...]:
        """Return the texts beside the input that cannot hold a placeholder: a policy may only refuse them."""
        return ()

    def revealing_field(self) -> str | None:
        """Return the field that asks for parts of the output which a policy cannot change, None if there is none."""
        return None

    def digest_fields(self) -> dict[str, Any]:
        """Return what two equal requests must also have in common, beside what their JSON form shows."""
        return {}


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
    reads the answer: it is there only where payloads are sealed.
    """

    model: str
    version: int
    flagged: tuple[PolicyHit, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    vault: dict[str, Any] | None = None


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
