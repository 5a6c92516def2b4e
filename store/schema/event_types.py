"""The events of webhooks and their names."""

from collections.abc import Iterable

from headrace.store.errors import InvalidRequest
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import JobState

RESPONSE_EVENTS = frozenset(f"response.{end}" for end in ("completed", "incomplete", "failed", "cancelled"))
"""The end of a response, sent beside the ``job.*`` event of its job."""

APPROVAL_REQUIRED = "job.approval_required"
"""A call of a tool waits for an approval. A job's own URL gets it if it asks for it."""

JOB_EVENTS: frozenset[str] = (
    RESPONSE_EVENTS | {f"job.{state}" for state in JobState if state.is_terminal} | {APPROVAL_REQUIRED}
)
"""The events for the URL that is given with a job."""

ENDPOINT_DISABLED = "webhook_endpoint.disabled"
"""Sent to the tenant's other endpoints."""

REGISTRY_EVENTS: frozenset[str] = frozenset(
    {"rollout.started", "rollout.promoted", "rollout.rolled_back", "rollout.aborted", "version.rejected"}
)
"""Events of models, which belong to no tenant. Triggers write them, to endpoints that name them."""

EVENT_TYPES: frozenset[str] = (
    JOB_EVENTS
    | {f"batch.{status}" for status in BatchStatus if status.is_terminal}
    | {ENDPOINT_DISABLED}
    | REGISTRY_EVENTS
)
"""The events that an endpoint can subscribe to."""

EVERY_EVENT = "*"
"""All events of the tenant, so without ``REGISTRY_EVENTS``."""

TEST = "webhook.test"
"""Sent on request, also to endpoints that have not subscribed to it."""


def check_events(events: Iterable[str]) -> list[str]:
    """Return an endpoint's events without duplicates, sorted; raise InvalidRequest for an unknown event."""
    wanted = sorted(set(events))
    known = EVENT_TYPES | {EVERY_EVENT}
    if unknown := [event for event in wanted if event not in known]:
        message = f"unknown webhook events: {', '.join(unknown)}: use {', '.join(sorted(known))}"
        raise InvalidRequest(message, param="events")
    if not wanted:
        raise InvalidRequest("name at least one webhook event, or *", param="events")
    return wanted
