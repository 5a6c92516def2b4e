"""Submits requests: each becomes a stored job, or is refused with nothing stored. All routes that make jobs use this.

A request is checked, prepared and stored by one thread, in one transaction. The checks run from cheap to expensive:
rate limit, model, webhook address, prompt and context window, token limit, limits of the queue. Then the job is stored.
One that needs the policy of its tenant, a new grammar or a prompt template goes on in the thread of that tenant, so
that it delays no other tenant.
"""

from dataclasses import replace
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from headrace.producer_api.access.rate_limits import TRUNCATED_HEADER, WARNING_HEADER, Headers, note_headers
from headrace.producer_api.server.request_spans import record_accept
from headrace.producer_api.submission import unserved
from headrace.producer_api.submission.draft_job import DraftJob, NeedsTenantThread, Origin, Receipt, known
from headrace.producer_api.submission.prompt_preparation import check_called_urls
from headrace.producer_api.submission.submission_hook import (
    StepSubmissions,
    SubmissionHook,
    SubmissionParts,
    build_hooks,
)
from headrace.producer_api.submission.text_guard import TextGuard
from headrace.prompts.tasks.task_inputs import Prepared
from headrace.store.calls.addresses import check_url
from headrace.store.errors import InvalidRequest, ModelLoadError, NotFound
from headrace.store.ids import new_id
from headrace.store.jobs import jobs
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import Accepted, Fallback, NewJob
from headrace.store.payloads.job_payload import CHEAP, EVERY_MODEL
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.schema.job_states import UNSERVED_QUEUE, CacheResult
from headrace.store.schema.version_states import VersionState
from headrace.store.tasks.flow import FlowRequest, JobOrFlowRequest, PipelineRequest
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import JobRequest
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import OFF, TraceContext, Tracing, now_ns

RETRY_WITHIN_S = 600.0
"""A retry without an Idempotency-Key finds the job of its first request for this long."""


HookType = TypeVar("HookType", bound=SubmissionHook)


class Submissions:
    """Submits requests."""

    def __init__(self, parts: SubmissionParts, *, tracing: Tracing = OFF) -> None:
        self._settings = parts.settings
        self._db = parts.db
        self._rate_limits = parts.rate_limits
        self._catalog = parts.catalog
        self._queue_limits = parts.queue_limits
        self._enqueuer = parts.enqueuer
        self._metrics = parts.metrics
        self._guards = parts.guards
        self._templates = parts.templates
        self._digests = parts.digests
        self._live_processes = parts.live_processes
        self._hooks = build_hooks(parts)
        self._tracing = tracing
        self._preparation = parts.preparation
        self.tenant_threads = parts.tenant_threads

    async def submit(
        self,
        principal: Principal,
        request: JobOrFlowRequest,
        origin: Origin,
        response: FaceRow | None = None,
        *,
        is_stored: bool | None = None,
    ) -> Receipt:
        """Store a job for the request, and ``response`` beside it if it came as one; ``is_stored`` as in DraftJob.

        Raises InvalidRequest, Forbidden, NotFound, RateLimited, IdempotencyKeyReused, ModelLoadError, Unavailable,
        and NoWorker where the settings require a worker and none serves the model version.
        """
        if isinstance(request, FlowRequest | PipelineRequest) or request.has_steps:
            return await self._submit_steps(principal, request, origin, response)
        start_ns = now_ns()
        draft = DraftJob(principal, request, origin, response, is_stored, self._tracing.within(origin.trace))
        try:
            return await self._submit(draft)
        except NotFound:
            # What the request names may be gone since its key was accepted: the key still has its job.
            if draft.idempotency is None:
                raise
            found = await run_in_threadpool(jobs.job_of_key, self._db, principal.tenant_id, draft.idempotency)
            if found is None:
                raise
            draft.headers["Idempotent-Replayed"] = "true"
            return Receipt(found, True, draft.headers)
        finally:
            note_headers(draft.headers)
            record_accept(self._tracing, draft.job, start_ns, parent=origin.trace)

    def hook(self, kind: type[HookType]) -> HookType:
        """Return the work of a feature, for its own routes."""
        return next(hook for hook in self._hooks if isinstance(hook, kind))

    async def _submit_steps(
        self, principal: Principal, request: JobOrFlowRequest, origin: Origin, response: FaceRow | None
    ) -> Receipt:
        for hook in self._hooks:
            if isinstance(hook, StepSubmissions):
                return await hook.submit(principal, request, origin, response)
        raise InvalidRequest("this server takes no jobs of several steps: send one step", param="steps")

    async def _submit(self, draft: DraftJob) -> Receipt:
        try:
            return await run_in_threadpool(self._submit_quick, draft)
        except NeedsTenantThread:
            return await self.tenant_threads.run(draft.principal.tenant_id, lambda: self._submit_slow(draft))

    def _submit_quick(self, draft: DraftJob) -> Receipt:
        """Store the draft. Raises NeedsTenantThread if its tenant's policy, template or grammar may take long."""
        if draft.origin.cache is not None:
            for hook in self._hooks:
                hook.check(draft)
        self._read_key(draft)
        draft.headers |= self._rate_limits.spend_request(draft.principal)
        if (found := self._look_up(draft)) is not None:
            return found
        if self._settings.require_worker and draft.request.start_after != CHEAP and draft.request.starts_at() is None:
            self._require_worker(draft)
        if self._is_guarded(draft) or draft.request.has_template or not self._is_quick(draft):
            raise NeedsTenantThread
        self._prepare(draft)
        return self._store(draft)

    def _is_quick(self, draft: DraftJob) -> bool:
        """Return True if preparing the draft for its versions takes no long time. Raises InvalidRequest."""
        if not self._preparation.is_quick(draft.request, known(draft.version)):
            return False
        try:
            return draft.candidate is None or self._preparation.is_quick(draft.request, draft.candidate)
        except InvalidRequest:
            return False  # it will not go to the candidate

    def _submit_slow(self, draft: DraftJob) -> Receipt:
        self._guard_and_prepare(draft)
        return self._store(draft)

    def _is_guarded(self, draft: DraftJob) -> bool:
        tenant_id = draft.principal.tenant_id
        return bool(self._guards.get(tenant_id)) and self._guard_of(draft) is not None

    def _guard_of(self, draft: DraftJob) -> TextGuard | None:
        return self._guards.in_force(draft.principal.tenant_id, known(draft.version).model)

    def guard_for(self, principal: Principal, name: str) -> TextGuard | None:
        """Return what guards the tenant's texts for a model, which need not exist. Blocks."""
        try:
            model = self._catalog.resolve(name).model
        except NotFound:
            model = EVERY_MODEL
        return self._guards.in_force(principal.tenant_id, model)

    def version_of(self, principal: Principal, name: str, *, is_pinned: bool = False) -> ModelVersion:
        """Return the version of a model string. ``is_pinned``: of ``name@3``, also if it is retired now.

        Raises Forbidden if the key may not use the model, NotFound if there is none. Blocks.
        """
        principal.check_model(name)
        return self._catalog.pinned(name) if is_pinned else self._catalog.resolve(name)

    def make_job(
        self,
        principal: Principal,
        request: JobRequest,
        version: ModelVersion,
        *,
        project_id: str | None = None,
        response: FaceRow | None = None,
        is_stored: bool | None = None,
        trace: TraceContext | None = None,
    ) -> NewJob:
        """Return the job of a line of a batch for its version, with the parent of its spans.

        No limit is checked, nothing is stored, and no rollout divides lines. Raises InvalidRequest, Conflict, NotFound,
        ModelLoadError, Unavailable. Blocks.
        """
        origin = Origin("batch", None, "", False, 0, project_id)
        draft = DraftJob(principal, request, origin, response, is_stored, trace)
        draft.version = version
        self._refuse_rejected(draft)
        self._guard_and_prepare(draft)
        return self._with_hooks(draft, self._new_job(draft))

    def _look_up(self, draft: DraftJob) -> Receipt | None:
        """Resolve the model. Return the job of the first request if this one is a retry of it."""
        draft.principal.check_model(draft.request.model)
        draft.version = self._catalog.resolve(draft.request.model)
        # No candidate gets a job of later: its rollout may be over then.
        if draft.version.is_divided and draft.request.start_after is None:
            for hook in self._hooks:
                hook.choose_version(draft)
        self._refuse_rejected(draft)
        if not draft.origin.is_retry or draft.idempotency is not None:
            return None
        fingerprints = self._digests.fingerprints(draft.origin.fingerprint)
        found = jobs.find_duplicate(self._db, draft.principal.tenant_id, fingerprints, RETRY_WITHIN_S)
        return None if found is None else self._receipt(draft, known(draft.version), found, replayed=True)

    def _refuse_rejected(self, draft: DraftJob) -> None:
        """Raise Conflict for a version that failed its verification, unless the request was accepted before."""
        version = known(draft.version)
        if version.state is VersionState.REJECTED and not self._was_accepted(draft):
            raise unserved.rejected(version)

    def _require_worker(self, draft: DraftJob) -> None:
        """Raise NoWorker for a model that no worker serves, unless the request was accepted before."""
        version = known(draft.version)
        queue = queue_name(version.model, version.version)
        if not self._live_processes.is_unserved(queue) or self._was_accepted(draft):
            return
        refusal = unserved.refusal(queue, self._live_processes.outlook(queue))
        if refusal is not None:
            raise refusal

    def _was_accepted(self, draft: DraftJob) -> bool:
        """Return True if the draft repeats a request that has its job already."""
        return draft.idempotency is not None and jobs.is_known(self._db, draft.principal.tenant_id, draft.idempotency)

    def _guard_and_prepare(self, draft: DraftJob) -> None:
        if isinstance(draft.request, GenerateRequest) and draft.request.has_template:
            draft.request = self._templates.fill(draft.principal.tenant_id, draft.request)
        if (guard := self._guard_of(draft)) is not None:
            guard.apply(draft)
        self._prepare(draft)

    def _read_key(self, draft: DraftJob) -> None:
        origin = draft.origin
        draft.idempotency = self._digests.idempotency(
            origin.route, origin.idempotency_key, draft.request, draft.response, is_stored=draft.is_stored
        )

    def _prepare(self, draft: DraftJob) -> None:
        """Check the webhook's address, count the prompt's tokens and make the payload that is stored."""
        if isinstance(draft.request, GenerateRequest) and draft.request.has_steps:
            field = "server_tools" if draft.request.retrieval is None else "retrieval"
            message = f"`{field}` does not go with lines of batches: send it as a job or a request of its own"
            raise InvalidRequest(message, param=field)
        if draft.request.webhook is not None:
            check_url(draft.request.webhook.url, self._settings)
        self._preparation.check_modalities(draft.request, known(draft.version))
        check_called_urls(draft.request, self._settings)
        draft.request = self._preparation.with_files(draft.principal.tenant_id, draft.request)
        prepared = self._preparation.prepare(draft.request, known(draft.version), draft.policy)
        if draft.candidate is not None:
            prepared = self._prepare_for(draft.candidate, draft, prepared)
        draft.payload, draft.num_tokens, draft.max_tokens = prepared.payload, prepared.num_tokens, prepared.max_tokens

    def _prepare_for(self, candidate: ModelVersion, draft: DraftJob, prepared: Prepared) -> Prepared:
        """Give the draft to the candidate. If only the version that it was ``prepared`` for takes it, it stays."""
        try:
            again = self._preparation.prepare_again(
                draft.request, known(draft.version), prepared, candidate, draft.policy
            )
        except (InvalidRequest, ModelLoadError):
            return prepared
        if again != prepared:
            payload = prepared.payload.model_dump(mode="json", exclude_none=True)
            draft.fallback = Fallback(payload, prepared.num_tokens, prepared.num_tokens + prepared.max_tokens)
        draft.version = candidate
        return again

    def count_tokens(self, principal: Principal, request: GenerateRequest) -> int:
        """Return the number of prompt tokens. Nothing is stored. Raises as ``submit`` does. Blocks."""
        principal.check_model(request.model)
        filled = self._templates.fill(principal.tenant_id, request)
        return self._preparation.count_tokens(filled, self._catalog.resolve(request.model))

    def render(self, principal: Principal, request: GenerateRequest) -> tuple[str, int]:
        """Return the text that the model would read, and its tokens. Nothing is stored. Raises as ``submit`` does."""
        principal.check_model(request.model)
        return self._preparation.render(request, self._catalog.resolve(request.model))

    def _store(self, draft: DraftJob) -> Receipt:
        """Store the job of a draft within the limits of its tokens and of the queue."""
        draft.headers |= self._rate_limits.spend_tokens(draft.principal, draft.num_tokens)
        job = self._with_hooks(draft, self._new_job(draft))
        has_deadline = draft.request.deadline_ms is not None
        outcome = self._queue_limits.accept(job, self._enqueuer.accept, has_deadline=has_deadline)
        receipt = self._receipt(draft, known(draft.version), outcome.job_id, replayed=outcome.replayed)
        draft.headers |= self.note_accepted(outcome, draft)
        if draft.truncated is not None:
            draft.headers[TRUNCATED_HEADER] = draft.truncated.as_header()
        if outcome.times is None:
            return receipt
        draft.job = job
        if outcome.cache not in (None, CacheResult.MISS):
            return receipt
        return replace(receipt, job=jobs.just_accepted(replace(job, cache=outcome.cache), outcome.times))

    def _with_hooks(self, draft: DraftJob, job: NewJob) -> NewJob:
        for hook in self._hooks:
            job = hook.with_job(draft, job)
        return job

    def note_accepted(self, outcome: Accepted, draft: DraftJob | None = None) -> Headers:
        """Tell the features that a job is stored; return headers for its caller. ``draft``: None for a batch's line."""
        headers: Headers = {}
        for hook in self._hooks:
            headers |= hook.accepted(outcome, draft)
        return headers

    def _receipt(self, draft: DraftJob, version: ModelVersion, job_id: str, *, replayed: bool) -> Receipt:
        request_class = draft.request.service_class
        self._metrics.count_accepted(version.model, version.version, version.task, request_class, replayed=replayed)
        if replayed:
            draft.headers["Idempotent-Replayed"] = "true"
        elif self._live_processes.is_unserved(queue := queue_name(version.model, version.version)):
            draft.headers[WARNING_HEADER] = unserved.warning(version, self._live_processes.outlook(queue))
        return Receipt(job_id, replayed, draft.headers)

    def _new_job(self, draft: DraftJob) -> NewJob:
        request, version, payload = draft.request, known(draft.version), known(draft.payload)
        default_s = self._settings.default_deadline_s
        start_after = request.starts_at()
        return NewJob(
            id=new_id("job"),
            tenant_id=draft.principal.tenant_id,
            task=request.task,
            model=version.model,
            model_version=version.version,
            queue=UNSERVED_QUEUE if start_after else queue_name(version.model, version.version),
            start_after=start_after,
            service_class=request.service_class,
            priority=request.priority,
            # Unset fields are left out: a worker of the previous release does not know the fields of this one.
            payload=payload.model_dump(mode="json", exclude_none=True),
            input_tokens=draft.num_tokens,
            cost_tokens=draft.num_tokens + draft.max_tokens,
            metadata=request.metadata,
            webhook=None if request.webhook is None else request.webhook.model_dump(mode="json", exclude_none=True),
            max_attempts=request.max_attempts or self._settings.default_max_attempts,
            deadline_s=default_s if request.deadline_ms is None else request.deadline_ms / 1000,
            idempotency=draft.idempotency,
            # ``Enqueuer.accept`` decides.
            announce=False,
            fingerprint=self._digests.fingerprints(sent)[0] if (sent := draft.origin.fingerprint) else None,
            api_key_id=draft.principal.key_id,
            project_id=draft.origin.project_id,
            user_id=request.user,
            response=draft.response,
            is_stored=draft.is_stored,
            traceparent=None if draft.trace is None else draft.trace.header,
            limits=self._rate_limits.held_by(draft.principal),
            model_digest=version.digest,
            rollout_id=draft.rollout_id,
            fallback=draft.fallback,
        )
