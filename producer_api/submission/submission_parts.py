"""The parts of an API process that every submission uses: of jobs, and of jobs with steps."""

from dataclasses import dataclass

from producer_api.access.rate_limits import RateLimits
from producer_api.caches.live_processes import LiveProcesses
from producer_api.caches.model_catalog import ModelCatalog
from producer_api.submission.enqueue import Enqueuer
from producer_api.submission.idempotency import RequestDigests
from producer_api.submission.input_policy import ActivePolicies
from producer_api.submission.prompt_preparation import PromptPreparation
from producer_api.submission.queue_limits import QueueLimits
from prompts.sandbox.turns import Turns
from store.db.database import Database
from store.metrics.api_metrics import ApiMetrics
from store.settings import Settings


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
    policies: ActivePolicies
    digests: RequestDigests
    live_processes: LiveProcesses
    preparation: PromptPreparation
    tenant_threads: Turns
