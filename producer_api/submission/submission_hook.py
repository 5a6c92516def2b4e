"""What a feature does with requests on their way to a stored job.

A hook is built from ``SubmissionParts``: what every submission uses in an API process, of jobs and of jobs with steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.assembly import parts
from headrace.producer_api.access.rate_limits import Headers, RateLimits
from headrace.producer_api.caches.live_processes import LiveProcesses
from headrace.producer_api.caches.model_catalog import ModelCatalog
from headrace.producer_api.submission.draft_job import DraftJob, Origin, Receipt
from headrace.producer_api.submission.enqueue import Enqueuer, RequestDigests
from headrace.producer_api.submission.prompt_preparation import PromptPreparation, PromptTemplates
from headrace.producer_api.submission.queue_limits import QueueLimits
from headrace.producer_api.submission.text_guard import LoadGuards, TextGuards, no_guards
from headrace.prompts.sandbox.turns import Turns
from headrace.store.db.database import Database
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal


@dataclass(frozen=True, slots=True)
class SubmissionParts:
    """What checks a request, and what stores it. ``tenant_threads``: for calls that may take long."""

    settings: Settings
    db: Database
    rate_limits: RateLimits
    catalog: ModelCatalog
    queue_limits: QueueLimits
    enqueuer: Enqueuer
    metrics: ApiMetrics
    guards: TextGuards
    templates: PromptTemplates
    digests: RequestDigests
    live_processes: LiveProcesses
    preparation: PromptPreparation
    tenant_threads: Turns


class SubmissionHook:
    """The work of a feature in one API process. A feature overrides what it needs; each method may block."""

    def check(self, draft: DraftJob) -> None:
        """Raise InvalidRequest for a wish about the response cache that is none. Called if the caller has one."""

    def choose_version(self, draft: DraftJob) -> None:
        """Set another version that takes the job if it can, ``draft.candidate``. Called for aliases with a rollout."""

    def with_job(self, draft: DraftJob, job: NewJob) -> NewJob:
        """Return the job as it is to be stored. ``draft`` is prepared."""
        return job

    def accepted(self, outcome: Accepted, draft: DraftJob | None) -> Headers:
        """Learn that a job is stored; return headers for its caller. ``draft``: None for a line of a batch."""
        return {}


class StepSubmissions(SubmissionHook, ABC):
    """The work of the feature that submits jobs of several steps."""

    @abstractmethod
    async def submit(self, principal: Principal, request: Any, origin: Origin, response: FaceRow | None) -> Receipt:
        """Store the job of a request with steps. Raises as ``Submissions.submit``."""


@dataclass(frozen=True, slots=True)
class SubmissionPart:
    """The ``PART`` of a feature's file ``submission``. ``build`` makes its work of one process.

    ``guards`` makes what reads the rules of tenants for the texts that come in, ``templates`` what fills in their
    prompt templates. One feature may have each.
    """

    build: Callable[[SubmissionParts], SubmissionHook] | None = None
    guards: Callable[[SubmissionParts], LoadGuards] | None = None
    templates: Callable[[Database], PromptTemplates] | None = None


def build_hooks(submission_parts: SubmissionParts) -> list[SubmissionHook]:
    """Return the work of all features, in their order."""
    found = [part.build for part in parts("submission", SubmissionPart) if part.build is not None]
    return [build(submission_parts) for build in found]


def open_guards(submission_parts: SubmissionParts) -> TextGuards:
    """Return the guards of all tenants, as a feature reads them; without such a feature there are none."""
    found = (part.guards for part in parts("submission", SubmissionPart) if part.guards is not None)
    guards = next(found, None)
    return TextGuards(no_guards if guards is None else guards(submission_parts))


def open_templates(db: Database) -> PromptTemplates:
    """Return the prompt templates of all tenants, as a feature keeps them; without such a feature there are none."""
    found = (part.templates for part in parts("submission", SubmissionPart) if part.templates is not None)
    templates = next(found, None)
    return PromptTemplates() if templates is None else templates(db)
