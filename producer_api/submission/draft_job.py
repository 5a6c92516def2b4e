"""A request on its way to become a stored job."""

from dataclasses import dataclass, field
from typing import TypeVar

from headrace.producer_api.access.rate_limits import Headers
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import Fallback, Idempotency, Job, NewJob
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.sampling_params import Truncated
from headrace.store.payloads.strict_model import Strict
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.generate import GeneratePayload
from headrace.store.tasks.registry import JobRequest
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, and the identity of its content.

    ``fingerprint`` is a digest of the API key, the route and all bytes of the body. Only a keyed digest of it is
    stored; it is empty if nothing of it may be stored. ``is_retry``: the client sent the request before and got no
    answer. ``project_id``: the project of the caller that the usage is counted for. ``cache``: the caller's wish.
    ``trace``: the span of the request, or the caller's while tracing is off.
    """

    route: str
    idempotency_key: str | None
    fingerprint: str
    is_retry: bool
    num_bytes: int
    project_id: str | None = None
    cache: str | None = None
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A stored job. ``replayed``: an earlier request made it. If ``job`` is None, its row has to be read."""

    job_id: str
    replayed: bool
    headers: dict[str, str]
    job: Job | None = None


@dataclass(slots=True)
class DraftJob:
    """A request that is being made into a job.

    ``is_stored``: True for a chat completion that is stored, False for one that is erased after its end, else None.
    ``version``: at first the one that the model string names. If a feature has chosen a ``candidate`` which takes the
    job, it is that one once the draft is prepared, and ``fallback`` has what the job is on the first one.
    ``trace``: the parent of the job's spans. ``job``: what was stored; None for a replay.
    """

    principal: Principal
    request: JobRequest
    origin: Origin
    response: FaceRow | None = None
    is_stored: bool | None = None
    trace: TraceContext | None = None
    job: NewJob | None = None
    idempotency: Idempotency | None = None
    version: ModelVersion | None = None
    candidate: ModelVersion | None = None
    rollout_id: str | None = None
    fallback: Fallback | None = None
    policy: PinnedPolicy | None = None
    policy_version: tuple[str, int] | None = None
    payload: Strict | None = None
    num_tokens: int = 0
    max_tokens: int = 0
    headers: Headers = field(default_factory=dict)

    @property
    def truncated(self) -> Truncated | None:
        """What was left out of the input; None if it is as it was sent."""
        return self.payload.truncated if isinstance(self.payload, GeneratePayload) else None


class NeedsTenantThread(Exception):
    """The next steps of this draft must run in its tenant's own thread."""


def known(value: T | None) -> T:
    """Return a value that an earlier step has set."""
    if value is None:
        raise ValueError("a step was left out")
    return value
