"""The one use case behind every face: take checked requests in as stored jobs, or refuse them with nothing stored.

Requests that come together go together, from their rate limits to the commit: one question to Redis, one thread, one
transaction, however many they are. Each gets its own outcome. The order is from cheap to dear: rate limit, model,
webhook address, prompt and context window, token limit, room in the queue, and then the accept wave.
One that would hold up the others (a retry, whose job is looked for; a long body; a model that is not loaded yet) goes
the same way alone and shares the commit. What a tenant's own policy and grammars cost is paid in that tenant's lane:
such a request leaves after the rate limits and comes back prepared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from policy.placeholders import Vault
from policy.policies import Policy
from producer_api.access.rate_limit_headers import WARNING_HEADER, note
from producer_api.access.rate_limits import Admission, Headers
from producer_api.caches.live_processes import Presence
from producer_api.caches.model_catalog import ModelCatalog
from producer_api.reads.placeholder_restore import vault_of
from producer_api.server.metrics import Metrics
from producer_api.server.thread_lanes import Lanes
from producer_api.submission.enqueue import Enqueuer
from producer_api.submission.idempotency import Recognition
from producer_api.submission.input_policy import ActivePolicy, PolicyCache, applied, pinned
from producer_api.submission.prompt_preparation import Preparing
from producer_api.submission.queue_limits import Room
from producer_api.submission.recent_tenants import RecentTenants
from store.db.database import Database
from store.db.group_commit import GroupCommit
from store.errors import HeadraceError, NotFound, NoWorker, Unavailable
from store.ids import new_id
from store.jobs import jobs
from store.jobs.jobs import Idempotency, Job, NewJob
from store.jobs.responses import NewResponse, job_id_of
from store.payloads.job_payload import PinnedPolicy
from store.payloads.strict_model import Strict
from store.registry.models import ModelVersion, queue_name
from store.registry.policies import EVERY_MODEL
from store.settings import Settings
from store.tasks.generate import GenerateRequest
from store.tasks.registry import JobRequest
from store.tenants.api_keys import Principal
from store.webhooks.addresses import check_url

T = TypeVar("T")

RETRY_WITHIN_S = 600.0
"""How long a client that sends no Idempotency-Key may take to send a request again."""

PACE_S = 0.02
ENOUGH = 16
"""Waves of submissions begin this far apart, or as soon as so many wait: what one waits at most to share a commit."""

_LONG_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request to make a job came in, and what tells it from others.

    ``fingerprint`` is of the API key, the route and the body to the byte; it is not stored as it is, and empty where
    nothing may be stored of it. ``is_retry``: the client says that it has
    sent this before and got no answer. ``project_id`` is the caller's own word for whom the usage is counted.
    """

    route: str
    idempotency_key: str | None
    fingerprint: str
    is_retry: bool
    num_bytes: int
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A stored job: the one just made, or for a request that came before the one that it made then.

    ``job`` is the row of one just made; that of an older one has to be read.
    """

    job_id: str
    replayed: bool
    headers: dict[str, str]
    job: Job | None = None


@dataclass(slots=True)
class _Draft:
    """A request on its way to become a job. With an ``outcome`` it goes no further."""

    principal: Principal
    request: JobRequest
    origin: Origin
    response: NewResponse | None = None
    idempotency: Idempotency | None = None
    version: ModelVersion | None = None
    policy: PinnedPolicy | None = None
    payload: Strict | None = None
    num_tokens: int = 0
    max_tokens: int = 0
    headers: Headers = field(default_factory=dict)
    outcome: Receipt | Exception | None = None
    is_prepared: bool = False

    @property
    def ended(self) -> Receipt | Exception:
        """The outcome, which the last step has set if no other had."""
        return self.outcome or ValueError("a step was left out")


class _Leaves(Exception):
    """Of a draft whose next steps belong in its tenant's lane."""


class Submissions:
    """Takes requests in."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        *,
        admission: Admission,
        catalog: ModelCatalog,
        room: Room,
        intake: Enqueuer,
        metrics: Metrics,
        policies: PolicyCache,
        recognition: Recognition,
        presence: Presence,
    ) -> None:
        self._settings = settings
        self._db = db
        self._admission = admission
        self._catalog = catalog
        self._room = room
        self._intake = intake
        self._metrics = metrics
        self._policies = policies
        self._recognition = recognition
        self._presence = presence
        self._preparing = Preparing(catalog, presence)
        self._lanes = Lanes()
        self._tenants = RecentTenants()
        self._batches: GroupCommit[_Draft, Receipt] = GroupCommit(self._submit_all, pace_s=PACE_S, enough=ENOUGH)

    async def submit(
        self, principal: Principal, request: JobRequest, origin: Origin, response: NewResponse | None = None
    ) -> Receipt:
        """Store a job for the request, and ``response`` beside it if it came as one.

        Raises InvalidRequest, Forbidden, NotFound, RateLimited, IdempotencyKeyReused, ModelLoadError, Unavailable,
        and NoWorker where the settings require a worker and none serves the model version.
        """
        draft = _Draft(principal, request, origin, response)
        try:
            return await self._taken(draft)
        except _Leaves:
            draft.outcome = None
            await self._lanes.run(principal.tenant_id, lambda: self._guard_and_prepare(draft))
            return await self._taken(draft)
        finally:
            note(draft.headers)

    async def _taken(self, draft: _Draft) -> Receipt:
        """Store a draft in a batch with others. A draft that would delay them is prepared alone before."""
        is_quick = not draft.origin.is_retry and draft.origin.num_bytes <= _LONG_BYTES
        if not (draft.is_prepared or (is_quick and self._catalog.is_loaded(draft.request.model))):
            await run_in_threadpool(self._prepare_all, [draft])
            if isinstance(draft.outcome, Exception):
                raise draft.outcome
            if draft.outcome is not None:
                return draft.outcome
        return await self._batches.join_async(draft, urgent=self._tenants.was_idle(draft.principal.tenant_id))

    def policy_for(self, principal: Principal, name: str) -> ActivePolicy | None:
        """Return the tenant's policy for a model, or for every model if it is not there. Blocks."""
        try:
            model = self._catalog.resolve(name).model
        except NotFound:
            model = EVERY_MODEL
        return self._policies.policy_for(principal.tenant_id, model)

    def check_model(self, principal: Principal, name: str) -> None:
        """Raise Forbidden if the key may not use the model, NotFound if there is none. Blocks."""
        principal.check_model(name)
        self._catalog.resolve(name)

    def make_job(
        self,
        principal: Principal,
        request: JobRequest,
        *,
        project_id: str | None = None,
        response: NewResponse | None = None,
    ) -> NewJob:
        """Return the job that the request would make, past every limit and without storing it: a batch's line.

        Raises InvalidRequest, Forbidden, NotFound, ModelLoadError, Unavailable. Blocks.
        """
        draft = _Draft(principal, request, Origin("batch", None, "", False, 0, project_id), response)
        self._look_up(draft)
        self._guard_and_prepare(draft)
        return self._new_job(draft)

    def _submit_all(self, drafts: Sequence[_Draft]) -> list[Receipt | Exception]:
        self._prepare_all([draft for draft in drafts if not draft.is_prepared])
        _spend(
            drafts,
            lambda going: self._admission.spend_all_tokens([(draft.principal, draft.num_tokens) for draft in going]),
        )
        self._store(drafts)
        return [draft.ended for draft in drafts]

    def _prepare_all(self, drafts: Sequence[_Draft]) -> None:
        """Count the requests in the rate limits and prepare those that are not refused."""
        _each(drafts, self._read_key)
        _spend(drafts, lambda going: self._admission.spend_requests([draft.principal for draft in going]))
        _each(drafts, self._look_up)
        if self._settings.require_worker:
            _each(drafts, self._require_worker)
        _each(drafts, self._prepare_here)

    def _look_up(self, draft: _Draft) -> None:
        """Find the model, and the job that a retry made when it came first."""
        draft.principal.check_model(draft.request.model)
        draft.version = self._catalog.resolve(draft.request.model)
        if draft.origin.is_retry and draft.idempotency is None:
            fingerprints = self._recognition.fingerprints(draft.origin.fingerprint)
            found = jobs.find_sent_before(self._db, draft.principal.tenant_id, fingerprints, RETRY_WITHIN_S)
            if found is not None:
                draft.outcome = self._receipt(draft, draft.version, found, replayed=True)

    def _require_worker(self, draft: _Draft) -> None:
        """Refuse what no worker serves, unless it was accepted before; what asks for other models goes on."""
        queue = _queue_of(_known(draft.version))
        if self._presence.is_unserved(queue) and not (
            draft.idempotency and jobs.is_known(self._db, draft.principal.tenant_id, draft.idempotency)
        ):
            draft.outcome = NoWorker(f"no worker serves {queue}: start one, or ask for another model", param="model")

    def _prepare_here(self, draft: _Draft) -> None:
        """Prepare a draft, unless that may take long because of what its tenant wrote: raise _Leaves then."""
        has_policy = self._policies.policy_for(draft.principal.tenant_id, _known(draft.version).model) is not None
        if has_policy or not self._preparing.is_quick(draft.request, _known(draft.version)):
            raise _Leaves
        self._prepare(draft)

    def _guard_and_prepare(self, draft: _Draft) -> None:
        self._guard(draft)
        self._prepare(draft)

    def _guard(self, draft: _Draft) -> None:
        """Let the tenant's policy replace what must not be stored, or refuse it."""
        found = self._policies.policy_for(draft.principal.tenant_id, _known(draft.version).model)
        if found is not None:
            sent = draft.request, draft.response
            draft.request = self._preparing.cut_to_length(draft.request, _known(draft.version))
            before = self._vault_before(draft) if found.policy.restores else None
            done = applied(found.policy, draft.request, draft.response, before)
            draft.request, draft.response = done.request, done.response
            draft.policy = pinned(found, done, is_sealed=self._db.vault.is_on)
            self._guard_names(draft, found.policy)
            if not self._recognition.is_keyed and (draft.request, draft.response) != sent:
                # Whatever was taken out could be found again from plain digests of what was sent.
                draft.origin = replace(draft.origin, fingerprint="")
                self._read_key(draft)

    def _guard_names(self, draft: _Draft, policy: Policy) -> None:
        """Let the policy see what the caller calls the request, and whom it is for."""
        if draft.idempotency is not None:
            tenant_id, idempotency = draft.principal.tenant_id, draft.idempotency
            key = self._recognition.key(
                policy, idempotency.key, lambda key: jobs.is_known(self._db, tenant_id, replace(idempotency, key=key))
            )
            draft.idempotency = replace(idempotency, key=key)
        if draft.origin.project_id is not None:
            project_id = self._recognition.name(policy, draft.origin.project_id, "OpenAI-Project")
            draft.origin = replace(draft.origin, project_id=project_id)
        if draft.request.user is not None:
            user = self._recognition.name(policy, draft.request.user, "user")
            draft.request = draft.request.model_copy(update={"user": user})

    def _read_key(self, draft: _Draft) -> None:
        origin = draft.origin
        draft.idempotency = self._recognition.idempotency(
            origin.route, origin.idempotency_key, draft.request, draft.response
        )

    def _vault_before(self, draft: _Draft) -> Vault | None:
        """Return the placeholders of the response that this one goes on from, which stand in its input."""
        if draft.response is None or draft.response.previous_id is None:
            return None
        tenant_id, job_id = draft.principal.tenant_id, job_id_of(draft.response.previous_id)
        return vault_of(jobs.get(self._db, tenant_id, job_id).payload)

    def _prepare(self, draft: _Draft) -> None:
        """Check the webhook; note the prompt's length and what is stored, with ``max_tokens`` made a number."""
        if draft.request.webhook is not None:
            check_url(draft.request.webhook.url, self._settings)
        prepared = self._preparing.prepare(draft.request, _known(draft.version), draft.policy)
        draft.payload, draft.num_tokens, draft.max_tokens = prepared.payload, prepared.num_tokens, prepared.max_tokens
        draft.is_prepared = True

    def count_tokens(self, principal: Principal, request: GenerateRequest) -> int:
        """Return how many tokens the model would be given. Raises as ``submit`` does; nothing is stored. Blocks."""
        principal.check_model(request.model)
        return self._preparing.count_tokens(request, self._catalog.resolve(request.model))

    def _store(self, drafts: Sequence[_Draft]) -> None:
        new = [(draft, self._new_job(draft)) for draft in drafts if draft.outcome is None]
        with_deadline = {job.id for draft, job in new if draft.request.deadline_ms is not None}
        accepted = self._room.accept([job for _, job in new], self._intake.accept, with_deadline=with_deadline)
        for (draft, job), outcome in zip(new, accepted, strict=True):
            if isinstance(outcome, Exception):
                draft.outcome = outcome
                continue
            receipt = self._receipt(draft, _known(draft.version), outcome.job_id, replayed=outcome.replayed)
            times = outcome.times
            draft.outcome = receipt if times is None else replace(receipt, job=jobs.just_accepted(job, times))

    def _receipt(self, draft: _Draft, version: ModelVersion, job_id: str, *, replayed: bool) -> Receipt:
        self._metrics.accepted.labels(version.model, str(replayed).lower()).inc()
        if replayed:
            draft.headers["Idempotent-Replayed"] = "true"
        elif self._presence.is_unserved(queue := _queue_of(version)):
            draft.headers[WARNING_HEADER] = f"no worker serves {queue}; the job waits until one starts"
        return Receipt(job_id, replayed, draft.headers)

    def _new_job(self, draft: _Draft) -> NewJob:
        request, version, payload = draft.request, _known(draft.version), _known(draft.payload)
        default_s = self._settings.default_deadline_s
        return NewJob(
            id=new_id("job"),
            tenant_id=draft.principal.tenant_id,
            task=request.task,
            model=version.model,
            model_version=version.version,
            queue=_queue_of(version),
            service_class=request.service_class,
            priority=request.priority,
            # What was not asked for is left out: a worker of the last release does not know this one's fields.
            payload=payload.model_dump(mode="json", exclude_none=True),
            input_tokens=draft.num_tokens,
            cost_tokens=draft.num_tokens + draft.max_tokens,
            metadata=request.metadata,
            webhook=None if request.webhook is None else request.webhook.model_dump(mode="json", exclude_none=True),
            max_attempts=request.max_attempts or self._settings.default_max_attempts,
            deadline_s=default_s if request.deadline_ms is None else request.deadline_ms / 1000,
            idempotency=draft.idempotency,
            # Decided by the accept wave, which looks at the ready window once for all its jobs.
            announce=False,
            fingerprint=self._recognition.fingerprints(sent)[0] if (sent := draft.origin.fingerprint) else None,
            api_key_id=draft.principal.key_id,
            project_id=draft.origin.project_id,
            user_id=request.user,
            response=draft.response,
            limits=self._admission.held_by(draft.principal),
        )


def _queue_of(version: ModelVersion) -> str:
    return queue_name(version.model, version.version)


def _known(value: T | None) -> T:
    """Return what an earlier step has set: a draft without it has an outcome and is not going any more."""
    if value is None:
        raise ValueError("a step was left out")
    return value


def _each(drafts: Sequence[_Draft], step: Callable[[_Draft], None]) -> None:
    """Take a step with each draft that is still going. Its failure is its own, but a service is away for all."""
    going = [draft for draft in drafts if draft.outcome is None]
    for draft in going:
        try:
            step(draft)
        except Unavailable as error:
            for each in going:
                each.outcome = each.outcome or error
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller, who gets it raised
            draft.outcome = error


def _spend(drafts: Sequence[_Draft], spend: Callable[[Sequence[_Draft]], Sequence[Headers | HeadraceError]]) -> None:
    going = [draft for draft in drafts if draft.outcome is None]
    for draft, told in zip(going, spend(going), strict=True):
        if isinstance(told, HeadraceError):
            draft.outcome = told
        else:
            draft.headers |= told
