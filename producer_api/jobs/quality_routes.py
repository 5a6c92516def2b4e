"""Routes of the bound for the quality of a model's versions."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.producer_api.access.auth import ModelsReader, RegistryAdmin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.version_routes import ModelName
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.registry.quality_bounds import read_bound, set_bound
from headrace.store.registry.quality_report import QualityBound

router = APIRouter(tags=["models"], route_class=StrictJsonRoute, responses=DOCUMENTED)


class QualityBoundObject(BaseModel):
    """The bound of a model. Limits that are null are not checked; without any, no version is refused."""

    object: Literal["model.quality_bound"] = "model.quality_bound"
    model: str = Field(description="the model's name")
    min_agreement: float | None = Field(description="the least share of next tokens that are the reference's")
    max_kl: float | None = Field(description="the greatest mean Kullback-Leibler divergence, in nats")
    max_perplexity_ratio: float | None = Field(description="the greatest perplexity, as a part of the reference's")


@router.get(
    "/v1/models/{model:path}/quality_bound", response_model=QualityBoundObject, summary="Get a model's quality bound"
)
async def show_bound(runtime: RuntimeOf, principal: ModelsReader, model: ModelName) -> Response:
    """Return what the versions of a model must keep to become ready."""
    principal.check_model(model)
    return _answer(model, await run_in_threadpool(read_bound, runtime.db, model))


@router.put(
    "/v1/models/{model:path}/quality_bound", response_model=QualityBoundObject, summary="Set a model's quality bound"
)
async def put_bound(body: QualityBound, runtime: RuntimeOf, principal: RegistryAdmin, model: ModelName) -> Response:
    """Set what the versions of a model must keep. It applies to verifications that begin from now on."""
    principal.check_model(model)
    await run_in_threadpool(set_bound, runtime.db, model, body, principal.key_id, tenant_id=principal.tenant_id)
    return _answer(model, body)


@router.delete("/v1/models/{model:path}/quality_bound", status_code=204, summary="Remove a model's quality bound")
async def remove_bound(runtime: RuntimeOf, principal: RegistryAdmin, model: ModelName) -> Response:
    """Remove the bound: no version is refused for its quality."""
    principal.check_model(model)
    await run_in_threadpool(set_bound, runtime.db, model, None, principal.key_id, tenant_id=principal.tenant_id)
    return Response(status_code=204)


def _answer(model: str, bound: QualityBound | None) -> Response:
    limits = dict.fromkeys(QualityBound.model_fields) if bound is None else bound.model_dump()
    return JsonResponse(QualityBoundObject(model=model, **limits))
