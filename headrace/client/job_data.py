"""The API's JSON as types: fields have the names and units of docs/jobs.md. Times are Unix seconds.

A newer server may send more fields; they are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Required, TypedDict

Json = dict[str, Any]

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})


class JobBody(TypedDict, total=False):
    """The fields of a new job; see docs/jobs.md. It has a ``model``, or ``steps`` with a model each (docs/steps.md).

    ``n`` is for ``generate`` only, ``dimensions`` and ``prompt_name`` for ``embed``, ``top_n`` for ``rerank``,
    ``top_k`` for ``classify``, ``image_classify``, ``image_zero_shot`` and ``recommend``,
    ``aggregation_strategy`` and ``ignore_labels`` for ``token_classify``,
    ``explain`` for ``predict``, ``filter`` and ``exclude_history`` for ``recommend``,
    ``language`` for ``transcribe``.
    ``truncate`` is for the tasks of text encoders.
    """

    model: str
    input: Required[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]
    n: int
    task: str
    language: str
    sampling: Mapping[str, Any]
    truncation: Literal["refuse", "left", "middle", "oldest_turns", "disabled", "auto"]
    retrieval: Mapping[str, Any]
    server_tools: Mapping[str, Any]
    dimensions: int
    prompt_name: str
    truncate: bool
    top_n: int
    explain: bool
    filter: Mapping[str, Any]
    exclude_history: bool
    top_k: int
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"]
    ignore_labels: Sequence[str]
    service_class: Literal["interactive", "standard", "batch"]
    priority: int
    deadline_ms: int
    start_after: int | Literal["cheap"]
    max_attempts: int
    webhook: Mapping[str, Any]
    user: str
    metadata: Mapping[str, str]


class JobUsage(TypedDict):
    """Tokens, times in ms and cost of a job."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    queue_ms: float | None
    first_token_ms: float | None
    compute_ms: float | None
    cost: float | None


class QueueInfo(TypedDict):
    """The queue of a job. ``position`` 1 starts next; None if it is not queued or not known."""

    name: str
    position: int | None
    estimated_start_at: int | None


class JobInfo(TypedDict):
    """A job. ``output``, ``error`` and ``usage`` are None until it ends."""

    id: str
    object: Literal["job"]
    task: str
    status: JobStatus
    model: str
    model_version: int
    model_digest: str | None
    service_class: str
    priority: int
    created_at: int
    start_after: int | None
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    cancel_requested_at: int | None
    queue: QueueInfo
    attempt: int
    max_attempts: int
    last_event_id: str | None
    output: Json | None
    error: Json | None
    usage: JobUsage | None
    metadata: dict[str, str]
    purged_at: int | None
    cache: Literal["hit", "shared", "miss"] | None
    truncated: Json | None
    template: Json | None
    pipeline: Json | None
    policy: Json | None
    parent_id: str | None
    steps: list[Json] | None
    waiting_for: list[Json] | None
    progress: Json | None
    links: dict[str, str]


class JobPage(TypedDict):
    """A page of jobs. The next page is ``after=page["last_id"]``.

    With filters a page may have no jobs although ``has_more`` is true.
    """

    object: Literal["list"]
    data: list[JobInfo]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class StreamEvent:
    """One event of a job's stream. ``id`` is the cursor from which ``stream`` can resume."""

    id: str
    name: str
    data: Json

    @property
    def text(self) -> str:
        """The next text of a ``job.delta``; all text that is still valid of a ``job.restarted``; else empty. A delta of
        sound has none, but ``data["audio"]``.
        """
        return str(self.data.get("text", "")) if self.name in {"job.delta", "job.restarted"} else ""

    @property
    def choice(self) -> int:
        """The number of the answer that a ``job.delta`` belongs to; 0 if there is only one."""
        return int(self.data.get("choice", 0))

    @property
    def is_restart(self) -> bool:
        """True if ``text`` replaces all text before it: a new attempt did not keep all of it."""
        return self.name == "job.restarted"

    @property
    def is_terminal(self) -> bool:
        """True for the last event; its ``data`` is the job."""
        return self.name.removeprefix("job.") in TERMINAL


class EventSubject(TypedDict):
    """What a webhook is about: ``object`` is its kind, such as ``job``, ``batch`` or ``rollout``."""

    id: str
    object: str
    status: str


class WebhookEvent(TypedDict):
    """The body of a webhook; ``id`` is the same in every attempt to deliver it."""

    id: str
    object: Literal["event"]
    type: str
    created_at: int
    timestamp: NotRequired[str]
    data: EventSubject
