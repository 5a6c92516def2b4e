"""Routes of rollouts. They belong to no tenant: what they change is seen by all tenants."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.rollouts import changes
from headrace.features.rollouts.evidence_plot import evidence_svg
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, get_rollout, list_rollouts
from headrace.features.rollouts.shadow import check_shadow
from headrace.features.rollouts.transitions import RolloutAction, Transition
from headrace.features.rollouts.views import (
    RolloutList,
    RolloutObject,
    RolloutRequest,
    new_rollout,
    rollout_object,
    rollout_summary,
)
from headrace.producer_api.access.auth import RegistryAdmin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.tenants.api_keys import Principal

router = APIRouter(tags=["models"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_ETAG = re.compile(r'"?([1-9][0-9]{0,8})"?')

RolloutId = Annotated[str, Path(description="a rollout's id", examples=["rollout_0197"])]
Reason = Annotated[str | None, Query(max_length=500, description="a sentence that is kept with the rollout")]
IfMatch = Annotated[str | None, Header(description="the `revision` that the rollout must have, else 412")]


@router.post("/v1/rollouts", response_model=RolloutObject, status_code=201, summary="Start a rollout")
async def start_rollout(body: RolloutRequest, runtime: RuntimeOf, principal: RegistryAdmin) -> Response:
    """Take an alias from the version that it names to a candidate, in steps.

    New jobs of all tenants are divided within two seconds.
    """
    principal.check_model(body.model)
    if body.mode is RolloutMode.SHADOW:
        settings = runtime.settings
        await run_in_threadpool(check_shadow, runtime.db, settings.shadow_tenant, settings.shadow_sources)
    wants_worker = runtime.settings.require_worker if body.require_worker is None else body.require_worker
    new = new_rollout(body, model=body.model, alias=body.alias, sticky_key=body.sticky_key, require_worker=wants_worker)
    started = await run_in_threadpool(changes.start, runtime.db, new, principal.key_id, tenant_id=principal.tenant_id)
    return rollout_answer(started, status_code=201)


@router.get("/v1/rollouts", response_model=RolloutList, summary="List rollouts")
async def show_rollouts(
    runtime: RuntimeOf,
    principal: RegistryAdmin,
    model: Annotated[str | None, Query(description="only the rollouts of this model")] = None,
    active: Annotated[bool, Query(description="only those that run or are paused")] = False,
) -> Response:
    """Return the newest hundred rollouts of the models that this key may use, without the judge's checks."""
    found = await run_in_threadpool(list_rollouts, runtime.db, model, is_active=active)
    allowed = [one for one in found if principal.models is None or one.model in principal.models]
    return JsonResponse(RolloutList(data=[rollout_summary(one) for one in allowed]))


@router.get("/v1/rollouts/{rollout}", response_model=RolloutObject, summary="Get a rollout")
async def show_rollout(rollout: RolloutId, runtime: RuntimeOf, principal: RegistryAdmin) -> Response:
    """Return a rollout with the judge's checks."""
    return rollout_answer(await _find(runtime, principal, rollout))


@router.get("/v1/rollouts/{rollout}/plot", summary="Draw a rollout's evidence", response_class=Response)
async def plot_rollout(rollout: RolloutId, runtime: RuntimeOf, principal: RegistryAdmin) -> Response:
    """Return the evidence against the candidate over time, as SVG."""
    found = await _find(runtime, principal, rollout)
    title = f"{found.model}@{found.alias}: version {found.candidate_version} against {found.stable_version}"
    return Response(evidence_svg(title, found.evidence), media_type="image/svg+xml")


@router.post("/v1/rollouts/{rollout}/pause", response_model=RolloutObject, summary="Pause a rollout")
async def pause_rollout(
    rollout: RolloutId, runtime: RuntimeOf, principal: RegistryAdmin, reason: Reason = None, if_match: IfMatch = None
) -> Response:
    """Hold the percentage. The judge still looks, and rolls back a bad candidate."""
    await _find(runtime, principal, rollout)
    return await changed(runtime, principal, rollout, RolloutAction.PAUSE, reason, if_match)


@router.post("/v1/rollouts/{rollout}/resume", response_model=RolloutObject, summary="Resume a rollout")
async def resume_rollout(
    rollout: RolloutId, runtime: RuntimeOf, principal: RegistryAdmin, reason: Reason = None, if_match: IfMatch = None
) -> Response:
    """Go on with the step; the time of the pause does not count."""
    await _find(runtime, principal, rollout)
    return await changed(runtime, principal, rollout, RolloutAction.RESUME, reason, if_match)


@router.post("/v1/rollouts/{rollout}/promote", response_model=RolloutObject, summary="Promote a candidate")
async def promote_rollout(
    rollout: RolloutId, runtime: RuntimeOf, principal: RegistryAdmin, reason: Reason = None, if_match: IfMatch = None
) -> Response:
    """Let the alias name the candidate now, without the steps that are left."""
    await _find(runtime, principal, rollout)
    return await changed(runtime, principal, rollout, RolloutAction.PROMOTE, reason, if_match)


@router.post("/v1/rollouts/{rollout}/abort", response_model=RolloutObject, summary="Abort a rollout")
async def abort_rollout(
    rollout: RolloutId, runtime: RuntimeOf, principal: RegistryAdmin, reason: Reason = None, if_match: IfMatch = None
) -> Response:
    """Send all new jobs to the stable version, and move the queued ones of the candidate there."""
    await _find(runtime, principal, rollout)
    return await changed(runtime, principal, rollout, RolloutAction.ABORT, reason, if_match)


async def _find(runtime: Runtime, principal: Principal, rollout_id: str) -> Rollout:
    found = await run_in_threadpool(get_rollout, runtime.db, rollout_id)
    if found.kind is not RolloutKind.MODEL:
        raise NotFound(f"no rollout {rollout_id!r} of a model", code="rollout_not_found", param="rollout")
    principal.check_model(found.model)
    return found


async def changed(
    runtime: Runtime,
    principal: Principal,
    rollout_id: str,
    action: RolloutAction,
    reason: str | None,
    if_match: str | None,
) -> Response:
    """Carry out an action on a rollout that this key may change. Raises NotFound, Conflict, PreconditionFailed."""
    transition = Transition(action, reason or f"{action.value} by {principal.key_id}")
    changed = await run_in_threadpool(
        changes.change,
        runtime.db,
        rollout_id,
        transition,
        principal.key_id,
        expected=_expected(if_match),
        tenant_id=principal.tenant_id,
    )
    return rollout_answer(changed)


def rollout_answer(rollout: Rollout, status_code: int = 200) -> Response:
    """Return the answer with a rollout and its revision."""
    headers = {"ETag": f'"{rollout.revision}"'}
    return JsonResponse(rollout_object(rollout), status_code=status_code, headers=headers)


def _expected(if_match: str | None) -> int | None:
    """Return the revision in If-Match, None without one. Raises InvalidRequest."""
    if if_match is None:
        return None
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise InvalidRequest('If-Match is the revision of the rollout, such as "3"', param="If-Match")
    return int(found[1])
