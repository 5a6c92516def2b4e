"""What callers say and see of webhooks: endpoints, deliveries and secrets, as the models that also document them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from producer_api.http.views import seconds
from store.payloads.job_payload import WebhookUrl
from store.payloads.strict_model import Strict
from store.schema.webhook_events import EVENT_TYPES, EVERY_EVENT
from store.tenants.webhook_secrets import DEFAULT_OVERLAP_S, TenantSecret
from store.webhooks.delivery_log import AttemptRecord, DeliveryRecord
from store.webhooks.endpoints import Endpoint

LONGEST_OVERLAP_S = 30 * 86_400
MOST_RECOVERED = 1000

_Event = Annotated[str, Field(max_length=64)]
Events = Annotated[
    tuple[_Event, ...],
    Field(
        min_length=1,
        max_length=32,
        description=f"of {', '.join(sorted(EVENT_TYPES))}; `{EVERY_EVENT}` means all",
        examples=[["response.completed", "response.failed"]],
    ),
]
Url = Annotated[
    WebhookUrl, Field(examples=["https://hooks.example.com/headrace"], description="https, to a public address")
]
_UnixTime = Annotated[int, Field(ge=0, lt=1 << 35, strict=True)]


class NewEndpoint(Strict):
    """A URL and the events it wants."""

    url: Url
    events: Events = (EVERY_EVENT,)


class EndpointPatch(Strict):
    """What is to be changed of an endpoint; what is left out stays."""

    url: Url | None = None
    events: Events | None = None


class SecretRotation(Strict):
    """How a secret is replaced."""

    overlap_s: int = Field(
        DEFAULT_OVERLAP_S,
        ge=0,
        le=LONGEST_OVERLAP_S,
        strict=True,
        description="how long calls carry a signature by the old secret too; 0: no longer",
    )


class Recovery(Strict):
    """Which events are to be sent again: those of a time range that were not delivered, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"since": 1795600000}]})

    since: _UnixTime = Field(description="Unix seconds")
    until: _UnixTime | None = Field(None, description="before this time; null: up to now")
    delivered_before: _UnixTime | None = Field(
        None, description="also those that were delivered, but before this time: when what took them was lost, say"
    )
    limit: int = Field(MOST_RECOVERED, ge=1, le=MOST_RECOVERED, strict=True)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise ValueError("until must be later than since")
        return self


class EndpointObject(BaseModel):
    """A URL that is called when jobs end. ``secret`` is shown in the answer to what made it, and never again."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    events: list[str]
    created_at: int
    disabled_at: int | None
    disabled_reason: str | None = Field(
        description="`gone`: it answered 410; `failing`: for days nothing was delivered"
    )
    failing_since: int | None = Field(description="every try since then failed")
    old_secret_expires_at: int | None = Field(description="until then calls are signed by the secret before too")
    secret: str | None = None


class EndpointList(BaseModel):
    """All of a tenant's endpoints."""

    object: Literal["list"] = "list"
    data: list[EndpointObject]


class Deleted(BaseModel):
    """What was removed."""

    id: str
    object: str
    deleted: Literal[True] = True


class WebhookSecret(BaseModel):
    """The secret that signs calls to the URLs which jobs bring themselves."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str
    old_secret_expires_at: int | None = Field(description="until then calls are signed by the secret before too")


class RecoveryObject(BaseModel):
    """How many events are on their way now; ``has_more``: there may be others, so ask again."""

    object: Literal["webhook_endpoint.recovery"] = "webhook_endpoint.recovery"
    endpoint_id: str
    queued: int
    has_more: bool


class DeliveryObject(BaseModel):
    """One event on its way to one URL: of a job, of a batch, or about an endpoint."""

    id: str = Field(description="the event's, which calls carry as `webhook-id`")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint_id: str | None = Field(description="null for the URL that came with the job")
    url: str
    job_id: str | None
    batch_id: str | None
    about_endpoint_id: str | None
    type: str
    status: str = Field(description="pending, delivered or failed")
    attempts: int
    next_attempt_at: int | None = Field(description="null unless it is pending")
    last_status: int | None = Field(description="the HTTP status of the last try; null if there was no answer")
    last_error: str | None
    created_at: int
    delivered_at: int | None


class AttemptObject(BaseModel):
    """One try of a delivery."""

    attempt: int
    at: float = Field(description="Unix seconds, with fractions")
    duration_ms: int
    status: int | None = Field(description="null if there was no answer")
    error: str | None = Field(description="null if it was delivered")


class DeliveryDetail(DeliveryObject):
    """A delivery with its last tries, oldest first."""

    tries: list[AttemptObject]


class DeliveryList(BaseModel):
    """A page of deliveries, newest first; ask for the next with ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[DeliveryObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def endpoint_object(endpoint: Endpoint, *, show_secret: bool = False) -> EndpointObject:
    """Return the endpoint, with its secret only when that was just made."""
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
        AttemptObject(
            attempt=one.attempt, at=one.at.timestamp(), duration_ms=one.duration_ms, status=one.status, error=one.error
        )
        for one in tries
    ]
    return DeliveryDetail(**_fields(delivery), tries=shown)


def delivery_list(found: Sequence[DeliveryRecord], limit: int) -> DeliveryList:
    """Return a page of the deliveries found, which may be one more than fit on it."""
    data = [delivery_object(delivery) for delivery in found[:limit]]
    return DeliveryList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def _fields(delivery: DeliveryRecord) -> dict[str, Any]:
    """Return what is shown; when it is tried next is of interest only while it is pending."""
    is_pending = delivery.state == "pending"
    return {
        "id": delivery.id,
        "endpoint_id": delivery.endpoint_id,
        "url": delivery.url,
        "job_id": delivery.job_id,
        "batch_id": delivery.batch_id,
        "about_endpoint_id": delivery.about_endpoint_id,
        "type": delivery.type,
        "status": delivery.state,
        "attempts": delivery.attempts,
        "next_attempt_at": seconds(delivery.next_attempt_at) if is_pending else None,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": int(delivery.created_at.timestamp()),
        "delivered_at": seconds(delivery.delivered_at),
    }
