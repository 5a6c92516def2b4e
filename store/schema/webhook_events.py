"""The events that webhooks tell of, and the names by which somebody asks for them. Knows no tables."""

from collections.abc import Iterable

from store.errors import InvalidRequest
from store.schema.batch_states import BatchStatus
from store.schema.job_states import JobState

RESPONSE_EVENTS = frozenset(f"response.{end}" for end in ("completed", "incomplete", "failed", "cancelled"))
"""The end of a response, sent beside the ``job.*`` event of its job."""

JOB_EVENTS: frozenset[str] = RESPONSE_EVENTS | {f"job.{state}" for state in JobState if state.is_terminal}
"""What a job's own URL can be told."""

ENDPOINT_DISABLED = "webhook_endpoint.disabled"
"""Told to the tenant's other endpoints."""

EVENT_TYPES: frozenset[str] = (
    JOB_EVENTS | {f"batch.{status}" for status in BatchStatus if status.is_terminal} | {ENDPOINT_DISABLED}
)
"""What an endpoint can ask for."""

EVERY_EVENT = "*"

TEST = "webhook.test"
"""Sent when it is asked for, whatever the endpoint wants."""


def check_events(events: Iterable[str]) -> list[str]:
    """Return an endpoint's events, each once, in order; raise InvalidRequest, with those there are, for another."""
    wanted = sorted(set(events))
    known = EVENT_TYPES | {EVERY_EVENT}
    if unknown := [event for event in wanted if event not in known]:
        told = f"unknown webhook events: {', '.join(unknown)}: use {', '.join(sorted(known))}"
        raise InvalidRequest(told, param="events")
    if not wanted:
        raise InvalidRequest("name at least one webhook event, or *", param="events")
    return wanted
