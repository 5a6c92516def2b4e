"""Divides the jobs of an alias with an active rollout between its stable version and the candidate.

A job goes to the candidate only if its stable version would take it too. So a job can be moved back at any time, and
no request is refused because of the candidate. One that only the stable version can take stays there, and so do all
while no worker serves the candidate. Where the versions differ in their default template alone, a request that does
without it is not divided: it would be the same on both.
"""

import secrets

from headrace.features.rollouts.rollouts import Rollout, active_rollouts
from headrace.features.rollouts.routing import takes_candidate
from headrace.producer_api.caches.model_catalog import KEEP_S
from headrace.producer_api.caches.ttl_cache import LoadingCache
from headrace.producer_api.submission.draft_job import DraftJob, known
from headrace.producer_api.submission.submission_hook import SubmissionHook, SubmissionParts
from headrace.store.errors import NotFound
from headrace.store.registry.models import DEFAULT_ALIAS, ModelVersion, queue_name
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import JobRequest

_MAX_ALIASES = 1000


class RolloutDivision(SubmissionHook):
    """Chooses the versions of drafts. A change of a rollout reaches new jobs within two seconds."""

    def __init__(self, parts: SubmissionParts) -> None:
        self._catalog = parts.catalog
        self._live_processes = parts.live_processes
        self._active: LoadingCache[tuple[str, str], tuple[Rollout | None]] = LoadingCache(
            lambda aliases: {alias: (found.get(alias),) for found in [active_rollouts(parts.db)] for alias in aliases},
            ttl_s=KEEP_S,
            max_size=_MAX_ALIASES,
        )

    def choose_version(self, draft: DraftJob) -> None:
        """Set the rollout of the draft, and the candidate if the rollout gives it this job."""
        stable = known(draft.version)
        (rollout,) = self._active.get((stable.model, draft.request.model.partition("@")[2] or DEFAULT_ALIAS))
        if rollout is None or rollout.stable_version != stable.version:
            return
        try:
            candidate = self._catalog.resolve(queue_name(stable.model, rollout.candidate_version))
        except NotFound:
            return
        if is_indifferent(draft.request, stable, candidate):
            return
        draft.rollout_id = rollout.id
        conversation = None if draft.response is None else draft.response.conversation
        user, draw = draft.request.user, secrets.token_hex(8)
        if takes_candidate(rollout, draft.principal.tenant_id, user, conversation, draw):
            is_served = not self._live_processes.is_unserved(queue_name(candidate.model, candidate.version))
            draft.candidate = candidate if is_served else None


def is_indifferent(request: JobRequest, one: ModelVersion, other: ModelVersion) -> bool:
    """Return True if the request would be the same on both versions: they differ in nothing but their template."""
    if isinstance(request, GenerateRequest) and request.takes_default_template:
        return False
    homes = [version.base if version.shares_weights else version.name for version in (one, other)]
    return homes[0] == homes[1] and one.sampling == other.sampling
