"""Routes of the models that jobs can use. A request with ``anthropic-version`` gets Anthropic's format."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.producer_api.access.auth import ModelsReader
from headrace.producer_api.http.requests import RuntimeOf
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.model_views import (
    AnthropicModel,
    AnthropicModelList,
    ModelList,
    ModelVersionObject,
    anthropic_model,
    anthropic_models,
    model_object,
    model_objects,
    reasoning_abilities,
)
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.registry import models as registry
from headrace.store.tasks.generate import GENERATE

router = APIRouter(prefix="/v1/models", tags=["models"], responses=DOCUMENTED)


AnthropicVersion = Annotated[
    str | None, Header(alias="anthropic-version", description="any value: answer in the format of Anthropic's API")
]


@router.get("", response_model=ModelList | AnthropicModelList, summary="List models")
async def list_models(
    runtime: RuntimeOf,
    principal: ModelsReader,
    anthropic_version: AnthropicVersion = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="of Anthropic's format: most models of a page")] = 20,
    after_id: Annotated[str | None, Query(description="of Anthropic's format: the page after this id")] = None,
    before_id: Annotated[str | None, Query(description="of Anthropic's format: the page before this id")] = None,
) -> Response:
    """Return the values of `model` that this key may use: names, aliases and versions."""
    models = await run_in_threadpool(registry.list_models, runtime.db)
    allowed = [model for model in models if principal.models is None or model.name in principal.models]
    found = [one for model in allowed for one in model_objects(model)]
    if anthropic_version is not None:
        return JsonResponse(anthropic_models(found, limit, after_id, before_id))
    return JsonResponse(ModelList(data=found))


@router.get("/{model:path}", response_model=ModelVersionObject | AnthropicModel, summary="Retrieve a model")
async def get_model(
    runtime: RuntimeOf,
    principal: ModelsReader,
    model: str,
    anthropic_version: AnthropicVersion = None,
) -> Response:
    """Return the model and the version that ``name``, ``name@3`` or ``name@alias`` means now."""
    principal.check_model(model)
    found = await run_in_threadpool(_find, runtime, model)
    shown = anthropic_model(found) if anthropic_version is not None else found
    return JsonResponse(shown, headers={"X-Model-Version": str(found.version)})


def _find(runtime: Runtime, name: str) -> ModelVersionObject:
    version = registry.resolve(runtime.db, name)
    summary = next(model for model in registry.list_models(runtime.db) if model.name == version.model)
    reasoning = runtime.catalog.tokenizer(version).reasoning if version.task == GENERATE.name else None
    return ModelVersionObject(
        **model_object(summary, name, version.version).model_dump(),
        context_window=version.context_window,
        dtype=version.dtype,
        digest=version.digest,
        batch_invariant=version.engine.batch_invariant if version.engine.is_external else None,
        accepts=version.engine.accepts or (),
        sampling=runtime.catalog.sampling(version) if version.spec.has_sampling else None,
        reasoning=reasoning_abilities(reasoning),
    )
