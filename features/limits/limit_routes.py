"""Routes of limits: the effective limits of the organization and its keys, their source, and the current usage.

With the scope ``admin`` an organization can set limits for itself and its keys, but not above the operator's.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.limits.usage_views import CURRENCY
from headrace.producer_api.access.auth import Admin, UsageReader
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.payloads.strict_model import Body
from headrace.store.tenants import quotas, tenant_limits
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.quotas import num_live_batches
from headrace.store.tenants.tenant_limits import LayeredLimits, Limits, SetBy

router = APIRouter(prefix="/v1/organization", tags=["limits"], route_class=StrictJsonRoute, responses=DOCUMENTED)

KeyId = Annotated[str, Path(examples=["key_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]

_MOST = 1 << 53
_Count = Annotated[int, Field(ge=0, le=_MOST, strict=True)]
_Rate = Annotated[int, Field(ge=1, le=_MOST, strict=True)]


class LimitValues(Body):
    """Limits; null: no limit."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"requests_per_minute": 60, "monthly_cost": 25}]}
    )

    requests_per_minute: _Rate | None = None
    input_tokens_per_minute: _Rate | None = None
    concurrent_jobs: _Count | None = Field(None, description="queued or running")
    queued_tokens: _Count | None = Field(None, description="prompt and `max_tokens` of the queued jobs")
    monthly_cost: float | None = Field(
        None,
        ge=0,
        le=_MOST,
        strict=True,
        allow_inf_nan=False,
        description=f"per calendar month in UTC, in {CURRENCY}",
    )
    live_batches: _Count | None = Field(None, description="batches that have not ended")
    concurrent_streams: _Count | None = Field(None, description="open streams and waits per API process")


class LimitsUsed(BaseModel):
    """Current usage. For a rate limit: the part of its bucket that is not refilled yet."""

    requests: int | None = Field(description="null without a limit of requests")
    input_tokens: int | None = Field(description="null without a limit of input tokens")
    concurrent_jobs: int
    queued_tokens: int
    cost: float = Field(description="cost of this month")
    reserved_cost: float = Field(description="highest possible cost of the queued and running jobs")
    month_ends_at: int = Field(description="Unix seconds")
    live_batches: int


class LimitsObject(BaseModel):
    """Limits of an organization or a key: `limits` are effective, the lower of the operator's and its own."""

    object: Literal["organization.limits", "organization.api_key.limits"]
    id: str
    limits: LimitValues
    operator: LimitValues = Field(description="set by the operator, or the default")
    own: LimitValues = Field(description="set by the organization")
    used: LimitsUsed


@router.get("/limits", response_model=LimitsObject, summary="Retrieve the organization's limits")
async def get_limits(runtime: RuntimeOf, principal: UsageReader) -> Response:
    """Return the limits and the usage of all keys of the organization together."""
    return JsonResponse(await run_in_threadpool(_limits_object, runtime, principal.tenant_id, None))


@router.put("/limits", response_model=LimitsObject, summary="Set the organization's own limits")
async def put_limits(request: Request, runtime: RuntimeOf, principal: Admin, body: LimitValues) -> Response:
    """Replace the organization's own limits; none may be above the operator's."""
    return JsonResponse(await run_in_threadpool(_set_limits, request, runtime, principal, None, body))


@router.get("/api_keys/{key_id}/limits", response_model=LimitsObject, summary="Retrieve a key's limits")
async def get_key_limits(runtime: RuntimeOf, principal: UsageReader, key_id: KeyId) -> Response:
    """Return the limits and the usage of one key. The organization's limits also apply."""
    return JsonResponse(await run_in_threadpool(_limits_object, runtime, principal.tenant_id, key_id))


@router.put("/api_keys/{key_id}/limits", response_model=LimitsObject, summary="Set a key's limits")
async def put_key_limits(
    request: Request, runtime: RuntimeOf, principal: Admin, key_id: KeyId, body: LimitValues
) -> Response:
    """Replace the limits of one key; none may be above the operator's."""
    return JsonResponse(await run_in_threadpool(_set_limits, request, runtime, principal, key_id, body))


def _standing(runtime: Runtime, tenant_id: str, key_id: str | None) -> LayeredLimits:
    if key_id is not None:
        tenant_limits.check_key(runtime.db, tenant_id, key_id)
    return tenant_limits.read_limits(runtime.db, runtime.settings, [(tenant_id, key_id)])[(tenant_id, key_id)]


def _set_limits(
    request: Request, runtime: Runtime, principal: Principal, key_id: str | None, body: LimitValues
) -> LimitsObject:
    wanted = _limits_of(body)
    tenant_limits.check_lower(wanted, _standing(runtime, principal.tenant_id, key_id).ceiling)
    tenant_limits.set_limits(
        runtime.db,
        principal.tenant_id,
        key_id,
        wanted,
        set_by=SetBy.TENANT,
        actor=principal.key_id,
        request_id=request.state.request_id,
    )
    runtime.limits.forget()
    return _limits_object(runtime, principal.tenant_id, key_id)


def _limits_object(runtime: Runtime, tenant_id: str, key_id: str | None) -> LimitsObject:
    standing = _standing(runtime, tenant_id, key_id)
    usage = quotas.usage_of(runtime.db, tenant_id, key_id or "")
    requests, tokens = runtime.rate_limits.used(key_id or tenant_id, standing.effective)
    return LimitsObject(
        object="organization.api_key.limits" if key_id else "organization.limits",
        id=key_id or tenant_id,
        limits=_limit_values(standing.effective),
        operator=_limit_values(standing.ceiling),
        own=_limit_values(standing.own),
        used=LimitsUsed(
            requests=requests,
            input_tokens=tokens,
            concurrent_jobs=usage.jobs,
            queued_tokens=usage.queued_tokens,
            cost=float(usage.spent),
            reserved_cost=float(usage.reserved),
            month_ends_at=int(quotas.month_end(datetime.now(UTC)).timestamp()),
            live_batches=num_live_batches(runtime.db, tenant_id, key_id),
        ),
    )


def _limits_of(body: LimitValues) -> Limits:
    cost = None if body.monthly_cost is None else Decimal(repr(body.monthly_cost))
    return Limits(**(body.model_dump() | {"monthly_cost": cost}))


def _limit_values(limits: Limits) -> LimitValues:
    cost = None if limits.monthly_cost is None else float(limits.monthly_cost)
    return LimitValues.model_validate(limits.given() | {"monthly_cost": cost})
