"""Jobs of several steps that the batch keeper makes: of pipelines, and of requests whose model calls tools.

Lines of batches keep the versions of the batch's start.
"""

from collections.abc import Mapping, Sequence

from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.features.flows.pipelines import PipelineVersion, at_place, of_pipeline, used_pipeline, version_of
from headrace.features.flows.retrieval_steps import as_flow, as_one
from headrace.producer_api.caches.model_catalog import KEEP_S
from headrace.producer_api.caches.ttl_cache import LoadingCache
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import RequestError
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import NewJob
from headrace.store.registry import prompt_templates
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.registry.prompt_templates import Kind
from headrace.store.tasks.flow import PipelineRequest
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tenants.api_keys import Principal

_MAX_VERSIONS = 64


class PipelineLines:
    """Makes jobs of versions of pipelines. Blocks. Nothing is stored, and no limit is checked."""

    def __init__(self, flows: FlowSubmissions) -> None:
        self._parts = parts = flows.parts
        self._flows = flows
        self.db = parts.db
        self._versions: LoadingCache[tuple[str, str], PipelineVersion] = LoadingCache(
            self._load, ttl_s=KEEP_S, max_size=_MAX_VERSIONS
        )

    def _load(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], PipelineVersion]:
        return {
            (tenant_id, name): version_of(prompt_templates.get(self._parts.db, tenant_id, name, kind=Kind.PIPELINE))
            for tenant_id, name in keys
        }

    def version(self, principal: Principal, name: str) -> PipelineVersion:
        """Return the version of ``name``, ``name@2`` or ``name@alias``, without its canary. Raises NotFound."""
        return self._versions.get((principal.tenant_id, name))

    def models_of(self, principal: Principal, version: PipelineVersion) -> dict[str, str]:
        """Return the version of each model string of the steps, as ``name@3``. Raises NotFound, Forbidden."""
        found: dict[str, str] = {}
        for index, step in enumerate(version.content.steps):
            with of_pipeline(), at_place(f"steps[{index}]"):
                principal.check_model(step.model)
                model = self._parts.catalog.resolve(step.model)
                found[step.model] = queue_name(model.model, model.version)
        return found

    def check(self, sent: PipelineRequest, version: PipelineVersion) -> None:
        """Raise InvalidRequest for an input against the schema of the version."""
        used_pipeline(sent, version)

    def make_job(
        self,
        principal: Principal,
        sent: PipelineRequest,
        version: PipelineVersion,
        models: Mapping[str, str],
        *,
        project_id: str | None,
    ) -> NewJob:
        """Return the job of a version with its steps. ``models``: the versions of their model strings.

        Raises as ``FlowSubmissions.submit``.
        """
        used = used_pipeline(sent, version, models)
        origin = Origin("batch", None, "", False, 0, project_id)
        with of_pipeline():
            job, _ = self._flows.make(principal, used.request, origin, None, used)
        return job

    def make_one(
        self,
        principal: Principal,
        request: GenerateRequest,
        version: ModelVersion,
        *,
        project_id: str | None,
        response: FaceRow | None = None,
    ) -> NewJob:
        """Return the job of a request with server tools, with its step. Raises as ``FlowSubmissions.submit_one``."""
        origin = Origin("batch", None, "", False, 0, project_id)
        models = {request.model: queue_name(version.model, version.version)}
        try:
            job, _ = self._flows.make(principal, as_flow(request), origin, response, None, models)
        except RequestError as error:
            raise as_one(error) from None
        return job
