"""Routes of the rollouts of a tenant's pipelines. Their steps, judge and ends are those of rollouts of models."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.flows.pipeline_mirrors import check_mirrored
from headrace.features.flows.pipeline_routes import PipelineId
from headrace.features.flows.pipelines import version_of
from headrace.features.rollouts import changes
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, StickyKey, get_rollout, list_rollouts
from headrace.features.rollouts.routes import IfMatch, Reason, RolloutId, changed, rollout_answer
from headrace.features.rollouts.transitions import RolloutAction
from headrace.features.rollouts.views import (
    RolloutList,
    RolloutObject,
    RolloutTerms,
    new_rollout,
    rollout_summary,
)
from headrace.producer_api.access.auth import JobsReader, JobsWriter
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import NotFound
from headrace.store.registry import prompt_templates
from headrace.store.registry.prompt_templates import ALIAS_PATTERN, DEFAULT, Kind
from headrace.store.tenants.api_keys import Principal

router = APIRouter(
    prefix="/v1/pipelines/{pipeline_id}/rollouts",
    tags=["pipelines"],
    route_class=StrictJsonRoute,
    responses=DOCUMENTED,
)


_ACTIONS = {
    "pause": RolloutAction.PAUSE,
    "resume": RolloutAction.RESUME,
    "promote": RolloutAction.PROMOTE,
    "abort": RolloutAction.ABORT,
}


class PipelineRolloutRequest(RolloutTerms):
    """A rollout of a pipeline to start."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"version": 2, "steps": [{"percent": 10, "hold_s": 600}, {"percent": 50, "min_jobs": 500}]},
            ]
        },
    )

    alias: str = Field(DEFAULT, pattern=ALIAS_PATTERN, description="the alias that goes to the candidate")


@router.post("", response_model=RolloutObject, status_code=201, summary="Start a rollout of a pipeline")
async def start_pipeline_rollout(
    runtime: RuntimeOf, principal: JobsWriter, pipeline_id: PipelineId, body: PipelineRolloutRequest
) -> Response:
    """Take an alias from the version that it names to a candidate, in steps. The next job is divided."""

    def start() -> Rollout:
        # Divided by the user or the Idempotency-Key, else alone: all jobs are of one tenant.
        new = new_rollout(
            body, model=_id_of(runtime, principal, pipeline_id), alias=body.alias, sticky_key=StickyKey.JOB
        )
        if body.mode is RolloutMode.SHADOW:
            named = (principal.tenant_id, new.model, body.version, Kind.PIPELINE)
            candidate = version_of(prompt_templates.get(runtime.db, *named))
            check_mirrored(runtime.settings, runtime.db, principal.tenant_id, candidate.content)
        return changes.start_of_pipeline(runtime.db, new, principal.key_id, principal.tenant_id)

    return rollout_answer(await run_in_threadpool(start), status_code=201)


@router.get("", response_model=RolloutList, summary="List a pipeline's rollouts")
async def list_pipeline_rollouts(runtime: RuntimeOf, principal: JobsReader, pipeline_id: PipelineId) -> Response:
    """Return the newest hundred rollouts of a pipeline, newest first, without the judge's checks."""

    def read() -> list[Rollout]:
        return list_rollouts(runtime.db, _id_of(runtime, principal, pipeline_id), kind=RolloutKind.PIPELINE)

    found = await run_in_threadpool(read)
    return JsonResponse(RolloutList(data=[rollout_summary(one) for one in found]))


@router.get("/{rollout}", response_model=RolloutObject, summary="Get a rollout of a pipeline")
async def get_pipeline_rollout(
    runtime: RuntimeOf, principal: JobsReader, pipeline_id: PipelineId, rollout: RolloutId
) -> Response:
    """Return a rollout of a pipeline with the judge's checks."""
    return rollout_answer(await run_in_threadpool(_find, runtime, principal, pipeline_id, rollout))


@router.post("/{rollout}/{verb}", response_model=RolloutObject, summary="Change a rollout of a pipeline")
async def change_pipeline_rollout(
    runtime: RuntimeOf,
    principal: JobsWriter,
    pipeline_id: PipelineId,
    rollout: RolloutId,
    verb: Annotated[str, Path(description="`pause`, `resume`, `promote` or `abort`")],
    reason: Reason = None,
    if_match: IfMatch = None,
) -> Response:
    """Pause, resume, promote or abort a rollout. Accepted jobs keep the version that they got."""
    await run_in_threadpool(_find, runtime, principal, pipeline_id, rollout)
    if verb not in _ACTIONS:
        raise NotFound(f"a rollout has no action {verb[:64]!r}: it has {', '.join(_ACTIONS)}", param="verb")
    return await changed(runtime, principal, rollout, _ACTIONS[verb], reason, if_match)


def _id_of(runtime: Runtime, principal: Principal, pipeline_id: str) -> str:
    """Return the id of a pipeline of the tenant. Raises NotFound."""
    return prompt_templates.get(runtime.db, principal.tenant_id, pipeline_id, kind=Kind.PIPELINE).id


def _find(runtime: Runtime, principal: Principal, pipeline_id: str, rollout_id: str) -> Rollout:
    """Return a rollout of a pipeline of the tenant. Raises NotFound."""
    owner = _id_of(runtime, principal, pipeline_id)
    found = get_rollout(runtime.db, rollout_id)
    if found.kind is not RolloutKind.PIPELINE or found.model != owner:
        raise NotFound(f"the pipeline has no rollout {rollout_id!r}", code="rollout_not_found", param="rollout")
    return found
