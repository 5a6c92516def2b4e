"""The version that runs a line of a batch, of a model or of a pipeline, and the job that it makes of the line."""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from headrace.features.batches.batches import Batch
from headrace.features.flows.pipeline_jobs import ParsedPipelineJob
from headrace.features.flows.pipeline_lines import PipelineLines
from headrace.features.flows.pipelines import PipelineVersion
from headrace.producer_api.submission.submit import Submissions
from headrace.producer_api.tasks.task_routes import ParsedRequest
from headrace.store.errors import NotFound
from headrace.store.jobs.jobs import NewJob
from headrace.store.payloads.job_payload import EVERY_MODEL, ServiceClass
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext

_OF_BATCH: Final[dict[str, Any]] = {"service_class": ServiceClass.BATCH, "webhook": None}


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """The version of a model that runs a line. Its methods block."""

    submissions: Submissions
    flows: PipelineLines
    wanted: ParsedRequest
    version: ModelVersion

    @property
    def model(self) -> str | None:
        """The model string of the line."""
        return self.wanted.job.model

    @property
    def policed_model(self) -> str:
        """The model whose policy the line has."""
        return self.version.model

    def pins(self, owner: Principal) -> dict[str, str]:
        """Return the version that the batch keeps, by the model string of the line."""
        return {self.wanted.job.model: queue_name(self.version.model, self.version.version)}

    def make_job(self, batch: Batch, owner: Principal, trace: TraceContext | None) -> NewJob:
        """Return the job of the line, with its steps if it has tools. Raises as ``Submissions.make_job``."""
        look_up = self.wanted.with_tools
        wanted = self.wanted if look_up is None else look_up(self.flows.db, owner.tenant_id)
        job = wanted.job.model_copy(update=_OF_BATCH)
        if isinstance(job, GenerateRequest) and job.server_tools is not None:
            return self.flows.make_one(owner, job, self.version, project_id=batch.project_id, response=wanted.response)
        return self.submissions.make_job(
            owner,
            job,
            self.version,
            project_id=batch.project_id,
            response=wanted.response,
            is_stored=wanted.is_stored,
            trace=trace,
        )


@dataclass(frozen=True, slots=True)
class PipelineTarget:
    """The version of a pipeline that runs a line. Its methods block."""

    pipelines: PipelineLines
    wanted: ParsedPipelineJob
    version: PipelineVersion
    url: str

    @property
    def model(self) -> str | None:
        """None: the steps have models of their own."""
        return None

    @property
    def policed_model(self) -> str:
        """The steps may have several models: the policy for all of them."""
        return EVERY_MODEL

    def pins(self, owner: Principal) -> dict[str, str]:
        """Return the versions that the batch keeps: of the pipeline by its URL, of the steps by their model strings.

        Raises NotFound or Forbidden for a step whose model is not there, or is not for this key.
        """
        return {self.url: self.version.pinned, **self.pipelines.models_of(owner, self.version)}

    def make_job(self, batch: Batch, owner: Principal, trace: TraceContext | None) -> NewJob:
        """Return the job of the line with its steps. Raises as ``FlowSubmissions.submit``."""
        job = self.wanted.job.model_copy(update=_OF_BATCH)
        models = batch.model_versions or {}
        return self.pipelines.make_job(owner, job, self.version, models, project_id=batch.project_id)


LineTarget: TypeAlias = ModelTarget | PipelineTarget


def target_of(
    submissions: Submissions,
    pipelines: PipelineLines,
    batch: Batch,
    owner: Principal,
    wanted: ParsedRequest | ParsedPipelineJob,
) -> LineTarget:
    """Return what runs a line: the version that the batch began with, once it has begun.

    Raises NotFound, Forbidden, and InvalidRequest for an input against the schema of a pipeline.
    """
    kept = batch.model_versions
    if isinstance(wanted, ParsedPipelineJob):
        version = pipelines.version(owner, (kept or {}).get(batch.url, wanted.job.pipeline))
        pipelines.check(wanted.job, version)
        return PipelineTarget(pipelines, wanted, version, batch.url)
    name = wanted.job.model
    if kept is None:
        return ModelTarget(submissions, pipelines, wanted, submissions.version_of(owner, name))
    pinned = kept.get(name)
    if pinned is None:
        owner.check_model(name)
        raise NotFound(f"there was no model {name[:200]!r} when the batch began", code="model_not_found", param="model")
    return ModelTarget(submissions, pipelines, wanted, submissions.version_of(owner, pinned, is_pinned=True))
