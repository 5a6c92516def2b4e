"""Routes of webhooks: endpoints, secrets, deliveries and redelivery."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.retention import retention
from headrace.features.webhooks import delivery_log, redelivery
from headrace.features.webhooks import endpoints as webhook_endpoints
from headrace.features.webhooks import secrets as webhook_secrets
from headrace.features.webhooks.delivery_log import DeliveryFilter
from headrace.features.webhooks.redelivery import MissedEvents
from headrace.features.webhooks.views import (
    DeliveryDetail,
    DeliveryList,
    DeliveryObject,
    EndpointList,
    EndpointObject,
    EndpointPatch,
    NewEndpoint,
    Recovery,
    RecoveryObject,
    SecretRotation,
    WebhookSecret,
    delivery_detail,
    delivery_list,
    delivery_object,
    endpoint_object,
    secret_object,
)
from headrace.producer_api.access.auth import WebhooksAdmin, may
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import Deleted, JsonResponse
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.calls.addresses import check_url
from headrace.store.errors import InvalidRequest
from headrace.store.schema.event_types import EVENT_TYPES, TEST
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1", tags=["webhooks"], route_class=StrictJsonRoute, responses=DOCUMENTED)

EndpointId = Annotated[str, Path(examples=["we_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]
DeliveryId = Annotated[str, Path(examples=["evt_5b3f0c2a3b4d4d518e9a2b6c7d8e9f01"])]
_ENDPOINT = "/webhook_endpoints/{endpoint_id}"


@router.post("/webhook_endpoints", status_code=201, response_model=EndpointObject, summary="Create an endpoint")
async def create_endpoint(runtime: RuntimeOf, principal: WebhooksAdmin, body: NewEndpoint) -> Response:
    """Add a URL that receives events of all jobs of the tenant. Only this answer shows its secret.

    The events of rollouts and versions belong to no tenant: they need `registry:admin` too, and no list of models.
    """
    check_url(body.url, runtime.settings, param="url")
    endpoint = await run_in_threadpool(
        webhook_endpoints.create_endpoint,
        runtime.db,
        principal.tenant_id,
        url=body.url,
        events=body.events,
        actor=principal.key_id,
        is_operator=_is_operator(principal),
    )
    view = endpoint_object(endpoint, show_secret=True)
    return JsonResponse(view, status_code=201)


def _is_operator(principal: Principal) -> bool:
    """Return True if the key may see every rollout and every version."""
    return may(principal, "registry:admin") and principal.models is None


@router.get("/webhook_endpoints", response_model=EndpointList, summary="List endpoints")
async def list_endpoints(runtime: RuntimeOf, principal: WebhooksAdmin) -> Response:
    """Return the tenant's endpoints, without their secrets."""
    endpoints = await run_in_threadpool(webhook_endpoints.list_endpoints, runtime.db, principal.tenant_id)
    return JsonResponse(EndpointList(data=[endpoint_object(endpoint) for endpoint in endpoints]))


@router.get(_ENDPOINT, response_model=EndpointObject, summary="Retrieve an endpoint")
async def get_endpoint(runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId) -> Response:
    """Return an endpoint: its events, and whether and why it is disabled."""
    found = await run_in_threadpool(webhook_endpoints.get_endpoint, runtime.db, principal.tenant_id, endpoint_id)
    return JsonResponse(endpoint_object(found))


@router.patch(_ENDPOINT, response_model=EndpointObject, summary="Change an endpoint")
async def update_endpoint(
    runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId, body: EndpointPatch
) -> Response:
    """Change an endpoint's URL or events. Pending deliveries go to the new URL."""
    if body.url is not None:
        check_url(body.url, runtime.settings, param="url")
    changed = await run_in_threadpool(
        webhook_endpoints.update_endpoint,
        runtime.db,
        principal.tenant_id,
        endpoint_id,
        url=body.url,
        events=body.events,
        actor=principal.key_id,
        is_operator=_is_operator(principal),
    )
    return JsonResponse(endpoint_object(changed))


@router.delete(_ENDPOINT, response_model=Deleted, summary="Delete an endpoint")
async def delete_endpoint(runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId) -> Response:
    """Delete an endpoint and its pending deliveries."""
    await run_in_threadpool(
        webhook_endpoints.delete_endpoint, runtime.db, principal.tenant_id, endpoint_id, actor=principal.key_id
    )
    return JsonResponse(Deleted(id=endpoint_id, object="webhook_endpoint"))


@router.post(f"{_ENDPOINT}/rotate_secret", response_model=EndpointObject, summary="Rotate an endpoint's secret")
async def rotate_secret(
    runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId, body: SecretRotation | None = None
) -> Response:
    """Create a new secret, shown only in this answer. The old one also signs for `overlap_s`, by default a day."""
    rotated = await run_in_threadpool(
        webhook_endpoints.rotate_secret,
        runtime.db,
        principal.tenant_id,
        endpoint_id,
        overlap_s=(body or SecretRotation()).overlap_s,
        actor=principal.key_id,
    )
    return JsonResponse(endpoint_object(rotated, show_secret=True))


@router.post(f"{_ENDPOINT}/test", status_code=202, response_model=DeliveryObject, summary="Send a test event")
async def send_test(runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId) -> Response:
    """Send a signed `webhook.test`, independent of the endpoint's events; its delivery can be read like any other."""
    queued = await run_in_threadpool(
        redelivery.send_test, runtime.db, principal.tenant_id, endpoint_id, actor=principal.key_id
    )
    return JsonResponse(delivery_object(queued), status_code=202)


@router.post(f"{_ENDPOINT}/enable", response_model=EndpointObject, summary="Enable an endpoint")
async def enable_endpoint(runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId) -> Response:
    """Enable a disabled endpoint. Missed events are sent only by `recover`."""
    enabled = await run_in_threadpool(
        webhook_endpoints.enable_endpoint, runtime.db, principal.tenant_id, endpoint_id, actor=principal.key_id
    )
    return JsonResponse(endpoint_object(enabled))


@router.post(f"{_ENDPOINT}/recover", status_code=202, response_model=RecoveryObject, summary="Send missed events")
async def recover(runtime: RuntimeOf, principal: WebhooksAdmin, endpoint_id: EndpointId, body: Recovery) -> Response:
    """Queue the undelivered events of a time range, for jobs and batches that are still kept.

    A repeated call queues no event twice.
    """

    def queue() -> int:
        holds = retention.read_retention(
            runtime.db, retention.defaults(runtime.settings), principal.tenant_id
        ).effective
        return redelivery.recover(
            runtime.db,
            principal.tenant_id,
            endpoint_id,
            MissedEvents(body.since, body.until, body.delivered_before),
            kept_s=holds.deliveries_s,
            limit=body.limit,
            actor=principal.key_id,
        )

    num_queued = await run_in_threadpool(queue)
    answer = RecoveryObject(endpoint_id=endpoint_id, queued=num_queued, has_more=num_queued >= body.limit)
    return JsonResponse(answer, status_code=202)


@router.get("/webhook_secret", response_model=WebhookSecret, summary="Retrieve the secret for URLs of jobs")
async def get_webhook_secret(runtime: RuntimeOf, principal: WebhooksAdmin) -> Response:
    """Return the tenant's secret, which signs calls to a job's own `webhook.url`."""
    found = await run_in_threadpool(webhook_secrets.get_webhook_secret, runtime.db, principal.tenant_id)
    return JsonResponse(secret_object(found))


@router.post("/webhook_secret/rotate", response_model=WebhookSecret, summary="Rotate the secret for URLs of jobs")
async def rotate_webhook_secret(
    runtime: RuntimeOf, principal: WebhooksAdmin, body: SecretRotation | None = None
) -> Response:
    """Create a new secret for jobs' own URLs. The old one also signs for `overlap_s`, by default a day."""
    rotated = await run_in_threadpool(
        webhook_secrets.rotate_webhook_secret,
        runtime.db,
        principal.tenant_id,
        overlap_s=(body or SecretRotation()).overlap_s,
        actor=principal.key_id,
    )
    return JsonResponse(secret_object(rotated))


@router.get("/webhook_deliveries", response_model=DeliveryList, summary="List deliveries")
async def list_deliveries(
    runtime: RuntimeOf,
    principal: WebhooksAdmin,
    job_id: str | None = None,
    endpoint_id: str | None = None,
    status: Literal["pending", "delivered", "failed"] | None = None,
    type: Annotated[str | None, Query(description="such as `job.failed`")] = None,  # noqa: A002 - the field's name
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
) -> Response:
    """Return the tenant's deliveries, newest first, optionally filtered by job, endpoint, status or type."""
    if type is not None and type not in EVENT_TYPES | {TEST}:
        raise InvalidRequest(f"unknown event type: use {', '.join(sorted(EVENT_TYPES | {TEST}))}", param="type")
    only = DeliveryFilter(job_id, endpoint_id, status, type)
    found = await runtime.lists.read(
        principal, lambda db: delivery_log.list_deliveries(db, principal.tenant_id, only, limit=limit + 1, after=after)
    )
    return JsonResponse(delivery_list(found, limit))


@router.get("/webhook_deliveries/{delivery_id}", response_model=DeliveryDetail, summary="Retrieve a delivery")
async def get_delivery(runtime: RuntimeOf, principal: WebhooksAdmin, delivery_id: DeliveryId) -> Response:
    """Return a delivery and its last tries: time, duration, and status or error."""
    found, tries = await run_in_threadpool(delivery_log.get_delivery, runtime.db, principal.tenant_id, delivery_id)
    return JsonResponse(delivery_detail(found, tries))


@router.post(
    "/webhook_deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=DeliveryObject,
    summary="Send a delivery again",
)
async def redeliver(runtime: RuntimeOf, principal: WebhooksAdmin, delivery_id: DeliveryId) -> Response:
    """Send an event again now with the same id, in any state, with ten new tries."""
    queued = await run_in_threadpool(
        delivery_log.redeliver, runtime.db, principal.tenant_id, delivery_id, actor=principal.key_id
    )
    return JsonResponse(delivery_object(queued), status_code=202)
