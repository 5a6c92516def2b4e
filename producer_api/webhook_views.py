"""What callers see of webhooks: endpoints, deliveries and the secret, as the models that also document them."""

from typing import Literal

from pydantic import BaseModel

from producer_api.views import seconds
from store.webhooks import DeliveryRecord, Endpoint


class EndpointObject(BaseModel):
    """A URL that is called when jobs end. ``secret`` is shown once, in the answer to its creation."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    events: list[str]
    created_at: int
    disabled_at: int | None
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


class DeliveryObject(BaseModel):
    """One event on its way to one URL."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint_id: str | None
    url: str
    job_id: str | None
    batch_id: str | None = None
    type: str
    status: str
    attempts: int
    next_attempt_at: int | None
    last_status: int | None
    last_error: str | None
    created_at: int
    delivered_at: int | None


class DeliveryList(BaseModel):
    """Deliveries, newest first."""

    object: Literal["list"] = "list"
    data: list[DeliveryObject]


def endpoint_object(endpoint: Endpoint, *, show_secret: bool = False) -> EndpointObject:
    """Return the endpoint, with its secret only when it was just made."""
    return EndpointObject(
        id=endpoint.id,
        url=endpoint.url,
        events=list(endpoint.events),
        created_at=int(endpoint.created_at.timestamp()),
        disabled_at=seconds(endpoint.disabled_at),
        secret=endpoint.secret if show_secret else None,
    )


def delivery_object(delivery: DeliveryRecord) -> DeliveryObject:
    """Return the delivery; when it is tried next is of interest only while it is pending."""
    is_pending = delivery.state == "pending"
    return DeliveryObject(
        id=delivery.id,
        endpoint_id=delivery.endpoint_id,
        url=delivery.url,
        job_id=delivery.job_id,
        batch_id=delivery.batch_id,
        type=delivery.type,
        status=delivery.state,
        attempts=delivery.attempts,
        next_attempt_at=seconds(delivery.next_attempt_at) if is_pending else None,
        last_status=delivery.last_status,
        last_error=delivery.last_error,
        created_at=int(delivery.created_at.timestamp()),
        delivered_at=seconds(delivery.delivered_at),
    )
