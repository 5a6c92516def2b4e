"""Routes of retention: the effective times, their source, and the organization's own shorter times."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.retention import retention
from headrace.features.retention.retention import DAY_S, LONGEST_S, LayeredRetention, Retention
from headrace.producer_api.access.auth import Admin, JobsReader
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.payloads.strict_model import Body
from headrace.store.tenants.api_keys import Principal
from headrace.store.tenants.tenant_limits import SetBy

router = APIRouter(prefix="/v1/organization", tags=["retention"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_Days = Annotated[float, Field(ge=0, le=LONGEST_S / DAY_S, strict=True, allow_inf_nan=False)]


class RetentionValues(Body):
    """Retention times in days. null: not set; 0: delete as soon as possible."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"inputs_days": 1, "outputs_days": 3}]}
    )

    inputs_days: _Days | None = Field(None, description="inputs of jobs, from the end of the job")
    outputs_days: _Days | None = Field(None, description="outputs of jobs, including streams")
    deliveries_days: _Days | None = Field(None, description="finished webhook deliveries")
    files_days: _Days | None = Field(None, description="files, from the upload; null: until they are deleted")


class RetentionObject(BaseModel):
    """Retention: `retention` is effective, the shorter of the operator's and the organization's own."""

    object: Literal["organization.retention"] = "organization.retention"
    id: str
    retention: RetentionValues
    operator: RetentionValues = Field(description="set by the operator, or the default")
    own: RetentionValues = Field(description="set by the organization")


@router.get("/retention", response_model=RetentionObject, summary="Retrieve the retention times")
async def get_retention(runtime: RuntimeOf, principal: JobsReader) -> Response:
    """Return the organization's retention times and their source."""
    return JsonResponse(await run_in_threadpool(_retention_object, runtime, principal.tenant_id))


@router.put("/retention", response_model=RetentionObject, summary="Set shorter retention times")
async def put_retention(request: Request, runtime: RuntimeOf, principal: Admin, body: RetentionValues) -> Response:
    """Replace the organization's own times; none may be longer than the operator's."""
    return JsonResponse(await run_in_threadpool(_set_retention, request, runtime, principal, body))


def _set_retention(request: Request, runtime: Runtime, principal: Principal, body: RetentionValues) -> RetentionObject:
    days: dict[str, float] = body.model_dump(exclude_none=True)
    wanted = Retention(**{name.replace("_days", "_s"): round(value * DAY_S) for name, value in days.items()})
    retention.check_shorter(wanted, _standing(runtime, principal.tenant_id).ceiling)
    retention.set_retention(
        runtime.db,
        principal.tenant_id,
        wanted,
        set_by=SetBy.TENANT,
        actor=principal.key_id,
        request_id=request.state.request_id,
    )
    return _retention_object(runtime, principal.tenant_id)


def _standing(runtime: Runtime, tenant_id: str) -> LayeredRetention:
    return retention.read_retention(runtime.db, retention.defaults(runtime.settings), tenant_id)


def _retention_object(runtime: Runtime, tenant_id: str) -> RetentionObject:
    standing = _standing(runtime, tenant_id)
    return RetentionObject(
        id=tenant_id,
        retention=_retention_values(standing.effective),
        operator=_retention_values(standing.ceiling),
        own=_retention_values(standing.own),
    )


def _retention_values(found: Retention) -> RetentionValues:
    return RetentionValues(**{name.replace("_s", "_days"): value / DAY_S for name, value in found.given().items()})
