"""Pipelines in submissions: which version a job gets, the steps that it makes, and the check of one that is stored."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from headrace.features.flows.pipeline import Pipeline, check_inputs
from headrace.features.rollouts.rollouts import RolloutMode, active_rollout
from headrace.features.rollouts.routing import point_of, takes_candidate
from headrace.policy.schemas import Validator, check_schema, first_problem
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.submission.submission_hook import SubmissionParts
from headrace.store.errors import InvalidRequest, NoWorker, RequestError
from headrace.store.ids import new_id
from headrace.store.payloads.job_payload import JobTerms
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.registry import prompt_templates
from headrace.store.registry.prompt_templates import Kind, PromptVersion
from headrace.store.tasks.flow import FlowRequest, PipelineRequest, check_steps
from headrace.store.tenants.api_keys import Principal

MIRRORED_INPUT = "mirrored_input"
"""The field of a job's payload with the input that the pipeline got, for a copy in shadow mode. Else it is in no row:
the steps have what they need of it. A job with a policy has none."""


@dataclass(frozen=True, slots=True)
class PipelineVersion:
    """A version of a pipeline, and how a job of it records the version."""

    use: PromptUse
    content: Pipeline

    @property
    def pinned(self) -> str:
        """The text that names this version also when another pipeline has got the name."""
        return f"{self.use.id}@{self.use.version}"


@dataclass(frozen=True, slots=True)
class UsedPipeline:
    """The job of a pipeline: what the caller sent, the steps that it makes, and the version that has them.

    ``models``: the versions of the steps' model strings, as ``name@3``; those that are missing are looked up.
    ``rollout_id``: the rollout that has divided it. ``is_mirrored``: the rollout is in shadow mode, so that a copy of
    the job needs its input.
    """

    asked: PipelineRequest
    request: FlowRequest
    version: PromptUse
    models: Mapping[str, str] = field(default_factory=dict)
    rollout_id: str | None = None
    is_mirrored: bool = False

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the job by which a rollout finds it."""
        return {"rollout_id": self.rollout_id, "pipeline_version": self.version.version}

    def payload_fields(self, *, has_policy: bool) -> dict[str, Any]:
        """Return the fields of the job's payload that say which version it is of, and what a copy of it needs."""
        copied = {MIRRORED_INPUT: self.asked.input} if self.is_mirrored and not has_policy else {}
        return {"pipeline": self.version.model_dump(mode="json"), **copied}


def from_pipeline(parts: SubmissionParts, principal: Principal, sent: PipelineRequest, origin: Origin) -> UsedPipeline:
    """Return the job of a pipeline. Blocks. Raises NotFound, InvalidRequest for an input against its schema."""
    # The users of a tenant are divided. A job without a user stands alone.
    key = sent.user or origin.idempotency_key or new_id("draw")
    db, tenant_id = parts.db, principal.tenant_id
    found = prompt_templates.choose(db, tenant_id, sent.pipeline, Kind.PIPELINE, lambda canary: point_of(canary, key))
    alias = sent.pipeline.partition("@")[2] or prompt_templates.DEFAULT
    rollout = active_rollout(db, found.id, alias)
    if rollout is None or found.version != rollout.stable_version:
        # The version of a number, or of an alias that was promoted a moment ago.
        return used_pipeline(sent, version_of(found))
    if takes_candidate(rollout, tenant_id, None, None, draw=key):
        found = prompt_templates.get(db, tenant_id, found.id, rollout.candidate_version, Kind.PIPELINE)
    is_mirrored = rollout.mode is RolloutMode.SHADOW
    return replace(used_pipeline(sent, version_of(found)), rollout_id=rollout.id, is_mirrored=is_mirrored)


def version_of(found: PromptVersion) -> PipelineVersion:
    """Return a stored version with its content."""
    content = Pipeline.model_validate(found.template)
    use = PromptUse(id=found.id, name=found.name, version=found.version, digest=content.content_digest)
    return PipelineVersion(use, content)


def used_pipeline(
    sent: PipelineRequest, version: PipelineVersion, models: Mapping[str, str] | None = None
) -> UsedPipeline:
    """Return the job of a version. Raises InvalidRequest for an input against its schema."""
    problem = first_problem(_validator(json.dumps(version.content.input_schema)), sent.input)
    if problem is not None:
        where, why = problem
        place = f"input.{where}"[:200] if where else "input"
        raise InvalidRequest(f"`{place}` is not as the pipeline declares it: {why[:200]}", param=place)
    terms = {name: getattr(sent, name) for name in JobTerms.model_fields}
    # Not validated again: the steps were, and a webhook or metadata are those of the request.
    request = FlowRequest.model_construct(**terms, task=sent.task, input=sent.input, steps=version.content.steps)
    return UsedPipeline(sent, request, version.use, models or {})


@lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    return check_schema(json.loads(schema), "input_schema")


def check_pipeline(parts: SubmissionParts, principal: Principal, pipeline: Pipeline) -> None:
    """Raise InvalidRequest for a pipeline with a wrong plan or schema, or with a text that the policy would change."""
    check_steps(pipeline.steps, parts.settings.max_steps)
    try:
        check_schema(pipeline.input_schema, "input_schema")
    except ValueError as error:
        raise InvalidRequest(str(error), param="input_schema") from None
    check_inputs(pipeline)
    found = parts.guards.in_force(principal.tenant_id)
    if found is not None:
        found.check_unchanged(pipeline.document, "steps", "this pipeline: let jobs bring it, in their input")


@contextmanager
def at_place(place: str) -> Iterator[None]:
    """Put the place of a step before the field that an error names."""
    try:
        yield
    except (RequestError, NoWorker) as error:
        error.param = place if error.param is None else f"{place}.{error.param.removeprefix(f'{place}.')}"
        raise


@contextmanager
def of_pipeline() -> Iterator[None]:
    """Say of an error about steps that the caller did not send that they are the pipeline's."""
    try:
        yield
    except (RequestError, NoWorker) as error:
        if error.param is not None and error.param.startswith("steps"):
            error.message = f"{error.param} of the pipeline: {error.message}"
            error.param = "pipeline"
        raise
