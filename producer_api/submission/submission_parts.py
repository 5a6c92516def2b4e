"""The parts of an API process that every submission uses: of jobs, and of jobs with steps."""

from dataclasses import dataclass

from headrace.producer_api.access.rate_limits import RateLimits
from headrace.producer_api.caches.live_processes import LiveProcesses
from headrace.producer_api.caches.model_catalog import ModelCatalog
from headrace.producer_api.submission.enqueue import Enqueuer
from headrace.producer_api.submission.idempotency import RequestDigests
from headrace.producer_api.submission.prompt_preparation import PromptPreparation
from headrace.producer_api.submission.queue_limits import QueueLimits
from headrace.producer_api.submission.text_guard import TextGuards
from headrace.prompts.sandbox.turns import Turns
from headrace.store.db.database import Database
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.settings import Settings


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
    digests: RequestDigests
    live_processes: LiveProcesses
    preparation: PromptPreparation
    tenant_threads: Turns
