"""Makes the mirrors of rollouts of pipelines in shadow mode: jobs of the candidate's steps, which the API prepares.

It is a duty, so one API process makes them, and no request waits. A mirror, and the jobs
that get one: ``features.rollouts.shadow``. The dispatcher reads the pairs and judges them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.features.flows.pipeline import Pipeline
from headrace.features.flows.pipeline_lines import PipelineLines
from headrace.features.flows.pipelines import MIRRORED_INPUT, PipelineVersion
from headrace.features.rollouts.evidence import Evidence
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, active_rollouts
from headrace.features.rollouts.shadow import EVERY_TENANT, as_mirror, check_shadow, mirror
from headrace.producer_api.api_part import ApiWork
from headrace.producer_api.runtime import Runtime
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, RequestError
from headrace.store.jobs.jobs import NewJob
from headrace.store.keeper import Duty, run_parts
from headrace.store.settings import Settings
from headrace.store.tasks.flow import PipelineRequest
from headrace.store.tasks.generate import GENERATE
from headrace.store.tenants.api_keys import Principal, principal_of_key

_log = structlog.get_logger("headrace.producer_api")

LOOK_S = 1.0
"""Seconds between two looks for jobs to copy."""

# A copy must have no effect outside: tools are called, and a search reads what may have changed since.
_REFUSED_FIELDS = ("retrieval", "server_tools")


def check_mirrored(settings: Settings, db: Database, tenant_id: str, candidate: Pipeline) -> None:
    """Raise InvalidRequest unless jobs of this tenant may be copied to the steps of the candidate."""
    check_shadow(db, settings.shadow_tenant, settings.shadow_sources)
    if not {EVERY_TENANT, tenant_id} & {*settings.shadow_sources}:
        raise InvalidRequest(
            "jobs of this organization are not copied: the operator has to name it in HEADRACE_SHADOW_SOURCES",
            param="mode",
        )
    for step in candidate.steps:
        refused = [name for name in _REFUSED_FIELDS if step.own_fields.get(name) is not None]
        if refused or step.task != GENERATE.name:
            reason = f"`{refused[0]}`" if refused else f"the task {step.task}"
            raise InvalidRequest(
                f"the step {step.name} of this version has {reason}: in shadow mode all steps generate text, without "
                "retrieval and server tools; compare this version without `mode`",
                param="mode",
            )


class PipelineMirrors(ApiWork):
    """Makes mirrors. Blocks. Where it is stays in memory: another process looks at the last minute again."""

    def __init__(self, settings: Settings, db: Database, pipelines: PipelineLines) -> None:
        self._settings = settings
        self._db = db
        self._pipelines = pipelines
        duty = Duty("mirror_pipelines", LOOK_S, self._turn, lambda: bool(settings.shadow_tenant))
        self.duties = ((duty,),)
        # By rollout: ``mirrored_until`` alone is used.
        self._looked: dict[str, Evidence] = {}

    def _turn(self) -> None:
        found = [
            one
            for one in active_rollouts(self._db).values()
            if one.kind is RolloutKind.PIPELINE and one.mode is RolloutMode.SHADOW
        ]
        self._looked = {rollout.id: self._looked.get(rollout.id, Evidence()) for rollout in found}
        run_parts((rollout.id, partial(self._mirror, rollout)) for rollout in found)

    def _mirror(self, rollout: Rollout) -> None:
        """Make the mirrors of a rollout with the rights of the key that has started it."""
        owner, shadow_tenant = principal_of_key(self._db, rollout.started_by), self._settings.shadow_tenant
        version = self._pipelines.version(owner, f"{rollout.model}@{rollout.candidate_version}")
        mirror(
            self._db,
            rollout,
            self._looked[rollout.id],
            shadow_tenant,
            self._settings.shadow_sources,
            partial(self._copy, owner, version, rollout),
            tenant_ids={owner.tenant_id, shadow_tenant},
        )

    def _copy(
        self, owner: Principal, version: PipelineVersion, rollout: Rollout, row: Mapping[str, Any]
    ) -> NewJob | None:
        """Return the mirror of a job; None if it has a policy, or the candidate does not take its input."""
        given = row["payload"].get(MIRRORED_INPUT)
        if given is None:
            return None
        sent = PipelineRequest(pipeline=version.pinned, input=given)
        try:
            made = self._pipelines.make_job(owner, sent, version, {}, project_id=None)
        except RequestError as error:
            # Without its message, which may quote the input.
            _log.info("mirror_refused", rollout=rollout.id, job_id=row["id"], code=error.code)
            return None
        if any("policy" in step.payload for step in made.steps):
            return None
        return as_mirror(made, rollout, row["id"], self._settings.shadow_tenant)


def mirrors_for(runtime: Runtime) -> PipelineMirrors:
    """Return what makes the mirrors of an API process."""
    pipelines = PipelineLines(runtime.submissions.hook(FlowSubmissions))
    return PipelineMirrors(runtime.settings, runtime.duties_db, pipelines)
