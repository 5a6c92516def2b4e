"""Divides the jobs of an alias with an active rollout between its stable version and the candidate.

A job goes to the candidate only if its stable version would take it too. So a job can be moved back at any time, and
no request is refused because of the candidate. One that only the stable version can take stays there, and so do all
while no worker serves the candidate. Where the versions differ in their default template alone, a request that does
without it is not divided: it would be the same on both.
"""

import secrets
from contextlib import suppress

from headrace.producer_api.caches.live_processes import LiveProcesses
from headrace.producer_api.caches.model_catalog import ModelCatalog
from headrace.producer_api.submission.default_templates import is_indifferent
from headrace.producer_api.submission.draft_job import DraftJob, known
from headrace.producer_api.submission.prompt_preparation import PromptPreparation
from headrace.prompts.tasks.task_inputs import Prepared
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.jobs.jobs import Fallback
from headrace.store.registry.models import queue_name
from headrace.store.rollouts.routing import takes_candidate


class RolloutRouting:
    """Chooses the version of a draft. Blocks."""

    def __init__(self, catalog: ModelCatalog, preparation: PromptPreparation, live_processes: LiveProcesses) -> None:
        self._catalog = catalog
        self._preparation = preparation
        self._live_processes = live_processes

    def look_up(self, draft: DraftJob) -> None:
        """Set the version that the model string names, and the candidate if its rollout gives it this job."""
        found = self._catalog.route(draft.request.model)
        draft.version = found.version
        if found.division is None:
            return
        rollout, candidate = found.division
        if is_indifferent(draft.request, found.version, candidate):
            return
        draft.rollout_id = rollout.id
        conversation = None if draft.response is None else draft.response.conversation
        user, draw = draft.request.user, secrets.token_hex(8)
        if takes_candidate(rollout, draft.principal.tenant_id, user, conversation, draw):
            is_served = not self._live_processes.is_unserved(queue_name(candidate.model, candidate.version))
            draft.candidate = candidate if is_served else None

    def is_quick(self, draft: DraftJob) -> bool:
        """Return True if preparing the draft for its versions takes no long time. Raises InvalidRequest."""
        if not self._preparation.is_quick(draft.request, known(draft.version)):
            return False
        try:
            return draft.candidate is None or self._preparation.is_quick(draft.request, draft.candidate)
        except InvalidRequest:
            return False  # it will stay on the stable version

    def prepare(self, draft: DraftJob) -> None:
        """Prepare the draft for its version; raise what ``PromptPreparation.prepare`` raises for the stable one."""
        stable, candidate = known(draft.version), draft.candidate
        draft.request = self._preparation.with_files(draft.principal.tenant_id, draft.request)
        prepared = self._preparation.prepare(draft.request, stable, draft.policy)
        if candidate is not None:
            # If only the stable version can take it, it stays there.
            with suppress(InvalidRequest, ModelLoadError):
                again = self._preparation.prepare_again(draft.request, stable, prepared, candidate, draft.policy)
                draft.version, draft.fallback = candidate, None if again == prepared else _fallback(prepared)
                prepared = again
        draft.payload, draft.num_tokens, draft.max_tokens = prepared.payload, prepared.num_tokens, prepared.max_tokens


def _fallback(stable: Prepared) -> Fallback:
    payload = stable.payload.model_dump(mode="json", exclude_none=True)
    return Fallback(payload, stable.num_tokens, stable.num_tokens + stable.max_tokens)
