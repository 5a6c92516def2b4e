"""Where a tenant is called when its jobs end: endpoints, secrets, and what became of each call."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from producer_api.auth import WebhooksAdmin
from producer_api.errors import DOCUMENTED
from producer_api.requests import RuntimeOf, StrictJsonRoute
from producer_api.views import JsonResponse
from producer_api.webhook_views import (
    Deleted,
    DeliveryList,
    EndpointList,
    EndpointObject,
    WebhookSecret,
    delivery_object,
    endpoint_object,
)
from store import keys, webhooks
from store.addresses import check_url
from store.payloads import WebhookSpec
from store.webhooks import EVERY_EVENT

router = APIRouter(prefix="/v1", tags=["webhooks"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_NEVER_STORED = {"Cache-Control": "no-store"}


class NewEndpoint(WebhookSpec):
    """A URL and the events it wants, such as ``job.succeeded``; ``*`` means all."""

    events: tuple[Annotated[str, Field(max_length=64)], ...] = Field((EVERY_EVENT,), min_length=1, max_length=32)


@router.post("/webhook_endpoints", status_code=201, response_model=EndpointObject, summary="Add an endpoint")
async def create_endpoint(runtime: RuntimeOf, principal: WebhooksAdmin, body: NewEndpoint) -> Response:
    """Add a URL that is called for every job of the tenant. The answer is the only one that shows its secret."""
    check_url(body.url, runtime.settings, param="url")
    endpoint = await run_in_threadpool(
        webhooks.create_endpoint,
        runtime.db,
        principal.tenant_id,
        url=body.url,
        events=body.events,
        actor=principal.key_id,
    )
    view = endpoint_object(endpoint, show_secret=True)
    return JsonResponse(view, status_code=201, headers=_NEVER_STORED)


@router.get("/webhook_endpoints", response_model=EndpointList, summary="List endpoints")
async def list_endpoints(runtime: RuntimeOf, principal: WebhooksAdmin) -> Response:
    """Return the tenant's endpoints, without their secrets."""
    endpoints = await run_in_threadpool(webhooks.list_endpoints, runtime.db, principal.tenant_id)
    return JsonResponse(EndpointList(data=[endpoint_object(endpoint) for endpoint in endpoints]))


@router.delete("/webhook_endpoints/{endpoint_id}", response_model=Deleted, summary="Remove an endpoint")
async def delete_endpoint(runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: str) -> Response:
    """Remove an endpoint and what was still to be sent to it."""
    await run_in_threadpool(
        webhooks.delete_endpoint, runtime.db, principal.tenant_id, endpoint_id, actor=principal.key_id
    )
    return JsonResponse(Deleted(id=endpoint_id, object="webhook_endpoint"))


@router.get("/webhook_secret", response_model=WebhookSecret, summary="The secret for URLs given with a job")
async def get_webhook_secret(runtime: RuntimeOf, principal: WebhooksAdmin) -> Response:
    """Return the tenant's secret, with which calls to a job's own ``webhook.url`` are signed."""
    secret = await run_in_threadpool(keys.get_webhook_secret, runtime.db, principal.tenant_id)
    return JsonResponse(WebhookSecret(secret=secret), headers=_NEVER_STORED)


@router.get("/webhook_deliveries", response_model=DeliveryList, summary="List deliveries")
async def list_deliveries(
    runtime: RuntimeOf,
    principal: WebhooksAdmin,
    job_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Return the tenant's deliveries, newest first, of one job or of all."""
    found = await run_in_threadpool(webhooks.list_deliveries, runtime.db, principal.tenant_id, job_id, limit)
    return JsonResponse(DeliveryList(data=[delivery_object(delivery) for delivery in found]))
