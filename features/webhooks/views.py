"""Request and response models of webhooks: endpoints, deliveries and secrets."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.features.webhooks.delivery_log import AttemptRecord, DeliveryRecord
from headrace.features.webhooks.endpoints import Endpoint
from headrace.features.webhooks.secrets import DEFAULT_OVERLAP_S, TenantSecret
from headrace.producer_api.http.views import seconds
from headrace.store.payloads.job_payload import WebhookUrl
from headrace.store.payloads.strict_model import Strict
from headrace.store.schema.event_types import EVENT_TYPES, EVERY_EVENT

LONGEST_OVERLAP_S = 30 * 86_400
MOST_RECOVERED = 1000

_Event = Annotated[str, Field(max_length=64)]
Events = Annotated[
    tuple[_Event, ...],
    Field(
        min_length=1,
        max_length=32,
        description=(
            f"of {', '.join(sorted(EVENT_TYPES))}; `{EVERY_EVENT}`: all of the tenant. Those of rollouts and versions "
            "must be named, by a key that also has `registry:admin`"
        ),
        examples=[["response.completed", "response.failed"]],
    ),
]
Url = Annotated[
    WebhookUrl, Field(examples=["https://hooks.example.com/headrace"], description="https, to a public address")
]
_UnixTime = Annotated[int, Field(ge=0, lt=1 << 35, strict=True)]


class NewEndpoint(Strict):
    """A URL and its events."""

    url: Url
    events: Events = (EVERY_EVENT,)


class EndpointPatch(Strict):
    """Changes of an endpoint; fields left out stay unchanged."""

    url: Url | None = None
    events: Events | None = None


class SecretRotation(Strict):
    """Rotation of a secret."""

    overlap_s: int = Field(
        DEFAULT_OVERLAP_S,
        ge=0,
        le=LONGEST_OVERLAP_S,
        strict=True,
        description="how long calls are also signed with the old secret, in seconds; 0: no longer",
    )


class Recovery(Strict):
    """Which events to send again: the undelivered ones of a time range, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"since": 1795600000}]})

    since: _UnixTime = Field(description="Unix seconds")
    until: _UnixTime | None = Field(None, description="before this time; null: up to now")
    delivered_before: _UnixTime | None = Field(
        None, description="also events delivered before this time, for example if the receiver lost them"
    )
    limit: int = Field(MOST_RECOVERED, ge=1, le=MOST_RECOVERED, strict=True)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise ValueError("until must be later than since")
        return self


class EndpointObject(BaseModel):
    """A URL that receives events. ``secret`` is shown only when it is created."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    events: list[str]
    created_at: int
    disabled_at: int | None
    disabled_reason: str | None = Field(
        description="`gone`: it answered 410; `failing`: no delivery succeeded for days"
    )
    failing_since: int | None = Field(description="all tries since then failed")
    old_secret_expires_at: int | None = Field(description="until then calls are also signed with the old secret")
    secret: str | None = None


class EndpointList(BaseModel):
    """All of a tenant's endpoints."""

    object: Literal["list"] = "list"
    data: list[EndpointObject]


class WebhookSecret(BaseModel):
    """The secret that signs calls to jobs' own URLs."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str
    old_secret_expires_at: int | None = Field(description="until then calls are also signed with the old secret")


class RecoveryObject(BaseModel):
    """Number of queued events. ``has_more``: call again, there may be more."""

    object: Literal["webhook_endpoint.recovery"] = "webhook_endpoint.recovery"
    endpoint_id: str
    queued: int
    has_more: bool


class DeliveryObject(BaseModel):
    """Delivery of one event to one URL. The event is about a job, a batch, an endpoint, a rollout or a version."""

    id: str = Field(description="id of the event, sent as `webhook-id`")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint_id: str | None = Field(description="null for a job's own URL")
    url: str
    job_id: str | None
    batch_id: str | None
    about_endpoint_id: str | None
    registry_id: str | None = Field(description="the id of a rollout, or a version as `name@3`")
    type: str
    status: str = Field(description="pending, delivered or failed")
    attempts: int
    next_attempt_at: int | None = Field(description="null unless it is pending")
    last_status: int | None = Field(description="the HTTP status of the last try; null if there was no answer")
    last_error: str | None
    created_at: int
    delivered_at: int | None


class DeliveryAttemptObject(BaseModel):
    """One try of a delivery."""

    attempt: int = Field(description="number of the try, from 1")
    at: float = Field(description="Unix seconds, with fractions")
    duration_ms: int
    status: int | None = Field(description="null if there was no answer")
    error: str | None = Field(description="null if it was delivered")


class DeliveryDetail(DeliveryObject):
    """A delivery with its last tries, oldest first."""

    tries: list[DeliveryAttemptObject]


class DeliveryList(BaseModel):
    """A page of deliveries, newest first; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[DeliveryObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def endpoint_object(endpoint: Endpoint, *, show_secret: bool = False) -> EndpointObject:
    """Return the endpoint, with its secret only if ``show_secret``."""
    return EndpointObject(
        id=endpoint.id,
        url=endpoint.url,
        events=list(endpoint.events),
        created_at=int(endpoint.created_at.timestamp()),
        disabled_at=seconds(endpoint.disabled_at),
        disabled_reason=endpoint.disabled_reason,
        failing_since=seconds(endpoint.failing_since),
        old_secret_expires_at=seconds(endpoint.old_secret_until),
        secret=endpoint.secret if show_secret else None,
    )


def secret_object(found: TenantSecret) -> WebhookSecret:
    """Return the tenant's secret."""
    return WebhookSecret(secret=found.secret, old_secret_expires_at=seconds(found.old_secret_until))


def delivery_object(delivery: DeliveryRecord) -> DeliveryObject:
    """Return the delivery."""
    return DeliveryObject(**_fields(delivery))


def delivery_detail(delivery: DeliveryRecord, tries: Sequence[AttemptRecord]) -> DeliveryDetail:
    """Return the delivery with its tries."""
    shown = [
        DeliveryAttemptObject(
            attempt=one.attempt, at=one.at.timestamp(), duration_ms=one.duration_ms, status=one.status, error=one.error
        )
        for one in tries
    ]
    return DeliveryDetail(**_fields(delivery), tries=shown)


def delivery_list(found: Sequence[DeliveryRecord], limit: int) -> DeliveryList:
    """Return a page of deliveries; ``found`` has up to ``limit + 1`` of them."""
    data = [delivery_object(delivery) for delivery in found[:limit]]
    return DeliveryList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def _fields(delivery: DeliveryRecord) -> dict[str, Any]:
    """Return the JSON fields. ``next_attempt_at`` is set only while the delivery is pending."""
    is_pending = delivery.state == "pending"
    return {
        "id": delivery.id,
        "endpoint_id": delivery.endpoint_id,
        "url": delivery.url,
        "job_id": delivery.job_id,
        "batch_id": delivery.batch_id,
        "about_endpoint_id": delivery.about_endpoint_id,
        "registry_id": delivery.registry_id,
        "type": delivery.type,
        "status": delivery.state,
        "attempts": delivery.attempts,
        "next_attempt_at": seconds(delivery.next_attempt_at) if is_pending else None,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": int(delivery.created_at.timestamp()),
        "delivered_at": seconds(delivery.delivered_at),
    }
