"""Routes of the models that jobs can use."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from producer_api.access.auth import ModelsReader
from producer_api.http.requests import RuntimeOf
from producer_api.http.views import JsonResponse
from producer_api.jobs.model_views import ModelList, ModelVersionObject, model_object, model_objects
from producer_api.runtime import Runtime
from producer_api.server.errors import DOCUMENTED
from store.registry import models as registry

router = APIRouter(prefix="/v1/models", tags=["models"], responses=DOCUMENTED)


@router.get("", response_model=ModelList, summary="List models")
async def list_models(runtime: RuntimeOf, principal: ModelsReader) -> Response:
    """Return the values of `model` that this key may use: names, aliases and versions."""
    models = await run_in_threadpool(registry.list_models, runtime.db)
    allowed = [model for model in models if principal.models is None or model.name in principal.models]
    return JsonResponse(ModelList(data=[one for model in allowed for one in model_objects(model)]))


@router.get("/{model:path}", response_model=ModelVersionObject, summary="Retrieve a model")
async def get_model(runtime: RuntimeOf, principal: ModelsReader, model: str) -> Response:
    """Return the model and the version that ``name``, ``name@3`` or ``name@alias`` means now."""
    principal.check_model(model)
    found = await run_in_threadpool(_find, runtime, model)
    return JsonResponse(found, headers={"X-Model-Version": str(found.version)})


def _find(runtime: Runtime, name: str) -> ModelVersionObject:
    version = registry.resolve(runtime.db, name)
    summary = next(model for model in registry.list_models(runtime.db) if model.name == version.model)
    return ModelVersionObject(
        **model_object(summary, name, version.version).model_dump(),
        context_window=version.context_window,
        dtype=version.dtype,
        digest=version.digest,
        batch_invariant=version.engine.batch_invariant if version.engine.is_external else None,
        sampling=runtime.catalog.sampling(version) if version.spec.has_sampling else None,
    )
