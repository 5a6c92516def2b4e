"""Routes of pipelines, which `POST /v1/jobs` names in `pipeline`. A version never changes."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.features.flows.pipeline_jobs import PipelineJob, request_of
from headrace.features.flows.pipeline_views import (
    NewPipeline,
    PipelineAlias,
    PipelineBody,
    PipelineDeleted,
    PipelineList,
    PipelineObject,
    document_of,
    pipeline_list,
    pipeline_object,
)
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import OriginOf, RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.jobs.job_routes import Prefer, submitted
from headrace.producer_api.jobs.job_views import JobObject
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.registry import prompt_templates
from headrace.store.registry.prompt_templates import ALIAS_PATTERN, Canary, Kind

router = APIRouter(prefix="/v1/pipelines", tags=["pipelines"], route_class=StrictJsonRoute, responses=DOCUMENTED)

PipelineId = Annotated[str, Path(description="id or name of the pipeline", examples=["digest"])]
AliasName = Annotated[str, Path(pattern=ALIAS_PATTERN, description="`default` or a name of your own")]


@router.post("", status_code=201, response_model=PipelineObject, summary="Create a pipeline")
async def create_pipeline(runtime: RuntimeOf, principal: JobsWriter, body: NewPipeline) -> Response:
    """Store steps as version 1 of a new pipeline. They are checked as those of a job, as far as no input is needed."""
    await runtime.submissions.hook(FlowSubmissions).check_pipeline(principal, body)
    create = partial(
        prompt_templates.create,
        runtime.db,
        principal.tenant_id,
        name=body.name,
        template=document_of(body),
        actor=principal.key_id,
        kind=Kind.PIPELINE,
    )
    return JsonResponse(pipeline_object(await run_in_threadpool(create)), status_code=201)


@router.get("", response_model=PipelineList, summary="List pipelines")
async def list_pipelines(
    runtime: RuntimeOf,
    principal: JobsReader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page")] = None,
) -> Response:
    """Return the newest version of each pipeline, newest pipeline first."""
    find = partial(prompt_templates.list_prompts, limit=limit + 1, after=after, kind=Kind.PIPELINE)
    found = await runtime.lists.read(principal, lambda db: find(db, principal.tenant_id))
    return JsonResponse(pipeline_list(list(found), limit))


@router.post("/{pipeline_id}/versions", status_code=201, response_model=PipelineObject, summary="Add a version")
async def add_version(
    runtime: RuntimeOf, principal: JobsWriter, pipeline_id: PipelineId, body: PipelineBody
) -> Response:
    """Store the next version of a pipeline. Jobs without a version use it, unless there is an alias `default`."""
    await runtime.submissions.hook(FlowSubmissions).check_pipeline(principal, body)
    add = partial(
        prompt_templates.add_version,
        runtime.db,
        principal.tenant_id,
        pipeline_id,
        template=document_of(body),
        actor=principal.key_id,
        kind=Kind.PIPELINE,
    )
    return JsonResponse(pipeline_object(await run_in_threadpool(add)), status_code=201)


@router.get("/{pipeline_id}/versions", response_model=PipelineList, summary="List a pipeline's versions")
async def list_versions(runtime: RuntimeOf, principal: JobsReader, pipeline_id: PipelineId) -> Response:
    """Return every version of a pipeline, oldest first."""
    found = await run_in_threadpool(
        prompt_templates.list_versions, runtime.db, principal.tenant_id, pipeline_id, Kind.PIPELINE
    )
    return JsonResponse(pipeline_list(found, len(found)))


@router.get("/{pipeline_id}", response_model=PipelineObject, summary="Retrieve a pipeline")
async def get_pipeline(
    runtime: RuntimeOf,
    principal: JobsReader,
    pipeline_id: PipelineId,
    version: Annotated[str | None, Query(description="number or alias; default: as in jobs")] = None,
) -> Response:
    """Return a version of a pipeline, and the canaries of all its aliases."""
    db, tenant_id = runtime.db, principal.tenant_id

    def read() -> PipelineObject:
        found = prompt_templates.get(db, tenant_id, pipeline_id, version, Kind.PIPELINE)
        return pipeline_object(found, prompt_templates.canaries(db, tenant_id, found.id, Kind.PIPELINE))

    return JsonResponse(await run_in_threadpool(read))


@router.post("/{pipeline_id}/jobs", status_code=202, response_model=JobObject, summary="Submit a job of a pipeline")
async def create_pipeline_job(
    request: Request,
    runtime: RuntimeOf,
    principal: JobsWriter,
    pipeline_id: PipelineId,
    body: PipelineJob,
    origin: OriginOf,
    prefer: Prefer = None,
) -> Response:
    """Store a job of a pipeline, as `POST /v1/jobs` with `pipeline` does. Lines of batches name this URL too."""
    return await submitted(request, runtime, principal, request_of(pipeline_id, body), origin, prefer)


@router.delete("/{pipeline_id}", response_model=PipelineDeleted, summary="Delete a pipeline")
async def delete_pipeline(runtime: RuntimeOf, principal: JobsWriter, pipeline_id: PipelineId) -> Response:
    """Delete a pipeline with all its versions. Its jobs keep their steps."""
    remove = partial(
        prompt_templates.delete,
        runtime.db,
        principal.tenant_id,
        pipeline_id,
        actor=principal.key_id,
        kind=Kind.PIPELINE,
    )
    return JsonResponse(PipelineDeleted(id=await run_in_threadpool(remove)))


@router.put("/{pipeline_id}/aliases/{alias}", response_model=PipelineObject, summary="Set a pipeline's alias")
async def set_alias(
    runtime: RuntimeOf, principal: JobsWriter, pipeline_id: PipelineId, alias: AliasName, body: PipelineAlias
) -> Response:
    """Let an alias name a version, with or without a canary. The next job uses it; accepted jobs keep their steps."""
    wanted = None if body.canary is None else Canary(alias, body.canary.version, body.canary.percent)
    put = partial(
        prompt_templates.set_alias,
        runtime.db,
        principal.tenant_id,
        pipeline_id,
        alias,
        body.version,
        actor=principal.key_id,
        kind=Kind.PIPELINE,
        canary=wanted,
    )
    found = await run_in_threadpool(put)
    return JsonResponse(pipeline_object(found, () if wanted is None else (wanted,)))


@router.delete("/{pipeline_id}/aliases/{alias}", status_code=204, summary="Remove a pipeline's alias")
async def remove_alias(
    runtime: RuntimeOf, principal: JobsWriter, pipeline_id: PipelineId, alias: AliasName
) -> Response:
    """Remove an alias with its canary. Without `default`, jobs without a version use the newest one."""
    remove = partial(
        prompt_templates.remove_alias,
        runtime.db,
        principal.tenant_id,
        pipeline_id,
        alias,
        actor=principal.key_id,
        kind=Kind.PIPELINE,
    )
    await run_in_threadpool(remove)
    return Response(status_code=204)
