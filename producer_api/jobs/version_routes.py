"""Routes of model versions and their aliases. Versions belong to no tenant, so a change is seen by all tenants."""

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.producer_api.access.auth import ModelsReader, RegistryAdmin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse, seconds
from headrace.producer_api.jobs.version_registration import VersionRequest, new_version
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.registry import versions
from headrace.store.registry.models import get_version, read_file, register_version
from headrace.store.registry.number_formats import check_format
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.registry.versions import ANY, VersionSummary
from headrace.store.schema.version_states import VersionState
from headrace.store.tenants.api_keys import Principal

router = APIRouter(tags=["models"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_ETAG = re.compile(r'"?([1-9][0-9]{0,8})"?')
_VERSION_ID = re.compile(r"(.+)@([1-9][0-9]{0,8})")

ModelName = Annotated[str, Path(description="a model's name", examples=["smollm2"])]
AliasName = Annotated[str, Path(description="`default`, `stable` or a name of your own", examples=["stable"])]
VersionId = Annotated[str, Path(description="`name@3`", examples=["smollm2@1"])]
IfMatch = Annotated[str | None, Header(description="the version that the alias must name now, else 412")]
IfNoneMatch = Annotated[str | None, Header(description="`*`: the alias must not exist, else 412")]


class VersionObject(BaseModel):
    """A version of a model."""

    object: Literal["model.version"] = "model.version"
    id: str = Field(description="value of `model` in requests: `name@3`")
    model: str
    version: int
    state: VersionState = Field(
        description="`registered` and `verifying`: a worker must verify it first; `ready`; `rejected`: failed its "
        "verification, so no worker runs it; `retired`: takes no new jobs"
    )
    state_at: int = Field(description="since when it has this state")
    state_reason: str | None = Field(description="why it was rejected, or could not be verified yet")
    verification: VerificationReport | None = Field(
        description="what the worker found that verified it; null: it has no weights, or was there before this release"
    )
    aliases: list[str] = Field(description="the aliases that name it")
    task: str
    engine: str = Field(description="what runs it: `native`, or a server: `vllm`, `sglang`, `openai`")
    after_a_loss: Literal["goes on", "starts anew"] | None = Field(
        description="what an answer does whose server or worker is lost; null: no inference server runs the version"
    )
    base: str | None = Field(
        description="the version whose workers run it: the base of a LoRA adapter, or of the same model the version "
        "whose weights it shares; `name@3`"
    )
    shares_weights: bool = Field(description="it is `base` with another default template, and is not loaded again")
    template: PromptUse | None = Field(
        description="its default template, whose messages come before those of a request without a template of its own"
    )
    quantized_from: str | None = Field(
        description="the version whose files it has in another number format: `name@3`; its quality is measured "
        "against that version"
    )
    digest: str
    dtype: str
    context_window: int
    queued: int = Field(description="its jobs that wait, of all tenants")
    workers: int | None = Field(description="its workers; null: not known")
    created_at: int
    retired_at: int | None = Field(description="when it was retired; null: it was not")


class VersionList(BaseModel):
    """Versions by model, newest first."""

    object: Literal["list"] = "list"
    data: list[VersionObject]


class AliasRequest(BaseModel):
    """What an alias is to name."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 2}]})

    force: bool = Field(False, description="also if a rollout of the version was rolled back")
    version: int = Field(ge=1, le=2**31 - 1, description="a version that is not retired")


class AliasObject(BaseModel):
    """An alias and the version that it names."""

    object: Literal["model.alias"] = "model.alias"
    id: str = Field(description="value of `model` in requests: `name@alias`")
    model: str = Field(description="the model's name")
    alias: str = Field(description="the alias")
    version: int = Field(description="the version that it names now")


@router.get("/v1/model_versions", response_model=VersionList, summary="List model versions")
async def list_versions(
    runtime: RuntimeOf,
    principal: ModelsReader,
    model: Annotated[str | None, Query(description="only the versions of this model")] = None,
) -> Response:
    """Return the versions of the models that this key may use, retired ones too."""
    found = await run_in_threadpool(versions.list_versions, runtime.db, model)
    allowed = [one for one in found if principal.models is None or one.model in principal.models]
    return JsonResponse(VersionList(data=[_view(runtime, one) for one in allowed]))


@router.get("/v1/models/{model:path}/versions", response_model=VersionList, summary="List a model's versions")
async def list_model_versions(runtime: RuntimeOf, principal: ModelsReader, model: ModelName) -> Response:
    """Return the versions of one model, newest first, retired ones too."""
    principal.check_model(model)
    found = await run_in_threadpool(versions.list_versions, runtime.db, model)
    if not found:
        raise NotFound(f"no model {model!r}", code="model_not_found", param="model")
    return JsonResponse(VersionList(data=[_view(runtime, one) for one in found]))


@router.post(
    "/v1/models/{model:path}/versions", response_model=VersionObject, status_code=201, summary="Register a version"
)
async def register(body: VersionRequest, runtime: RuntimeOf, principal: RegistryAdmin, model: ModelName) -> Response:
    """Register the next version of a model: of files that the registry has, of an inference server, or with another
    default template.

    A worker verifies it before it runs jobs. The same body gives the same version again.
    """
    principal.check_model(model)
    made = await run_in_threadpool(_register, runtime, principal, model, body)
    return JsonResponse(made, status_code=201)


@router.post("/v1/model_versions/{version:path}/retire", response_model=VersionObject, summary="Retire a version")
async def retire_version(runtime: RuntimeOf, principal: RegistryAdmin, version: VersionId) -> Response:
    """Take a version out of use for new jobs. Accepted jobs are still run, by workers that serve its number."""
    return await _change(versions.retire, runtime, principal, version)


@router.post("/v1/model_versions/{version:path}/revive", response_model=VersionObject, summary="Revive a version")
async def revive_version(runtime: RuntimeOf, principal: RegistryAdmin, version: VersionId) -> Response:
    """Take a retired version back into use."""
    return await _change(versions.revive, runtime, principal, version)


@router.put("/v1/models/{model:path}/aliases/{alias}", response_model=AliasObject, summary="Set an alias")
async def set_alias(
    body: AliasRequest,
    runtime: RuntimeOf,
    principal: RegistryAdmin,
    model: ModelName,
    alias: AliasName,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Let an alias name a version. New jobs of all tenants follow within two seconds; accepted jobs keep theirs."""
    principal.check_model(model)
    await run_in_threadpool(
        versions.set_alias,
        runtime.db,
        model,
        alias,
        body.version,
        principal.key_id,
        expected=_expected(if_match, if_none_match),
        force=body.force,
        tenant_id=principal.tenant_id,
    )
    found = AliasObject(id=f"{model}@{alias}", model=model, alias=alias, version=body.version)
    return JsonResponse(found, headers={"ETag": f'"{body.version}"'})


@router.delete("/v1/models/{model:path}/aliases/{alias}", status_code=204, summary="Remove an alias")
async def remove_alias(
    runtime: RuntimeOf, principal: RegistryAdmin, model: ModelName, alias: AliasName, if_match: IfMatch = None
) -> Response:
    """Remove an alias other than `default`. Requests that use it get 404 within two seconds."""
    principal.check_model(model)
    await run_in_threadpool(
        versions.remove_alias,
        runtime.db,
        model,
        alias,
        principal.key_id,
        expected=_expected(if_match, None),
        tenant_id=principal.tenant_id,
    )
    return Response(status_code=204)


async def _change(change: Callable[..., None], runtime: Runtime, principal: Principal, version: str) -> Response:
    """Retire or revive a version, and return it."""
    model, number = _read_id(version)
    principal.check_model(model)
    await run_in_threadpool(change, runtime.db, model, number, principal.key_id, tenant_id=principal.tenant_id)
    return JsonResponse(await run_in_threadpool(_find, runtime, model, number))


def _register(runtime: Runtime, principal: Principal, model: str, body: VersionRequest) -> VersionObject:
    files_of = template = None
    if body.files_of is not None:
        name, number = _read_id(body.files_of)
        principal.check_model(name)
        files_of = get_version(runtime.db, name, number)
        config = files_of.files.get("config.json")
        if body.engine is None and config is not None:
            check_format(body.dtype, files_of.spec, read_file(runtime.db, config))
        template = files_of.template if "prompt" not in body.model_fields_set else None
    if body.prompt is not None:
        template = runtime.templates.snapshot(principal.tenant_id, body.prompt)
    values = new_version(model, body, files_of) | {"template": template}
    made = register_version(runtime.db, actor=principal.key_id, tenant_id=principal.tenant_id, **values)
    return _find(runtime, made.model, made.version)


def _expected(if_match: str | None, if_none_match: str | None) -> int:
    """Return the version that an alias must name, 0 if it must not exist. Raises InvalidRequest."""
    if if_match is not None and if_none_match is not None:
        raise InvalidRequest("send If-Match or If-None-Match, not both", param="If-Match")
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise InvalidRequest("If-None-Match is `*`: the alias must not exist", param="If-None-Match")
        return 0
    if if_match is None:
        return ANY
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise InvalidRequest('If-Match is the number of a version, such as "3"', param="If-Match")
    return int(found[1])


def _read_id(version_id: str) -> tuple[str, int]:
    found = _VERSION_ID.fullmatch(version_id)
    if found is None:
        raise NotFound(f"no version {version_id!r}: name one by its number, such as smollm2@1", code="model_not_found")
    return found[1], int(found[2])


def _find(runtime: Runtime, model: str, number: int) -> VersionObject:
    found = versions.list_versions(runtime.db, model)
    return next(_view(runtime, one) for one in found if one.version == number)


def _view(runtime: Runtime, one: VersionSummary) -> VersionObject:
    name = f"{one.model}@{one.version}"
    serving = runtime.live_processes.serving(name)
    at = {"created_at": one.created_at, "retired_at": one.retired_at, "state_at": one.state_at}
    known = {field.name: getattr(one, field.name) for field in fields(one) if field.name in VersionObject.model_fields}
    return VersionObject.model_validate(
        known
        | {field: seconds(value) for field, value in at.items()}
        | {
            "id": name,
            "engine": one.engine.kind.value,
            "after_a_loss": one.engine.after_a_loss if one.engine.is_external else None,
            "aliases": list(one.aliases),
            "queued": one.num_queued,
            "workers": None if serving is None else serving.workers,
        }
    )
