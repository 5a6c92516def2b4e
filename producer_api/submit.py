"""The one use case behind every face: take a checked request in as a stored job, or refuse it with nothing stored.

It blocks (Redis, Postgres, tokenizing) and is called in a thread. The order is from cheap to dear: rate limit, model,
webhook address, prompt and context window, token limit, room in the queue, and then the accept wave.
"""

import hashlib
from dataclasses import dataclass, replace

import orjson

from producer_api.requests import Origin
from producer_api.runtime import Runtime
from prompts.prompt import build_prompt, fit
from store import jobs
from store.addresses import check_url
from store.errors import InvalidRequest
from store.ids import new_id
from store.jobs import Idempotency, Job, NewJob
from store.keys import Principal
from store.payloads import GeneratePayload, GenerateRequest
from store.registry import ModelVersion, queue_name

MAX_KEY_CHARS = 255

RETRY_WITHIN_S = 600.0
"""How long a client that sends no Idempotency-Key may take to send a request again."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A stored job: the one just made, or for a request that came before the one that it made then.

    ``job`` is the row of one just made; that of an older one has to be read.
    """

    job_id: str
    replayed: bool
    headers: dict[str, str]
    job: Job | None = None


def submit(runtime: Runtime, principal: Principal, request: GenerateRequest, origin: Origin) -> Receipt:
    """Store a job for the request. Raises InvalidRequest, NotFound, RateLimited, IdempotencyKeyReused, Unavailable."""
    idempotency = _idempotency(origin, request)
    headers = runtime.admission.spend_request(principal)
    version = runtime.catalog.resolve(request.model)
    if origin.is_retry and idempotency is None:
        sent_before = jobs.find_sent_before(runtime.db, principal.tenant_id, origin.fingerprint, RETRY_WITHIN_S)
        if sent_before is not None:
            return _receipt(runtime, version, sent_before, headers, replayed=True)
    if request.webhook is not None:
        check_url(request.webhook.url, runtime.settings)
    num_tokens, payload = _prepare(runtime, version, request)
    headers |= runtime.admission.spend_tokens(principal, num_tokens)
    job = _new_job(runtime, principal, request, version, payload, num_tokens, idempotency, origin.fingerprint)
    accepted = runtime.room.accept(job, runtime.intake.accept, has_deadline=request.deadline_ms is not None)
    receipt = _receipt(runtime, version, accepted.job_id, headers, replayed=accepted.replayed)
    return receipt if accepted.times is None else replace(receipt, job=jobs.just_accepted(job, accepted.times))


def _receipt(
    runtime: Runtime, version: ModelVersion, job_id: str, headers: dict[str, str], *, replayed: bool
) -> Receipt:
    runtime.metrics.accepted.labels(version.model, str(replayed).lower()).inc()
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return Receipt(job_id, replayed, headers)


def _idempotency(origin: Origin, request: GenerateRequest) -> Idempotency | None:
    key = origin.idempotency_key
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} characters", param="Idempotency-Key")
    body = orjson.dumps(request.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    return Idempotency(route=origin.route, key=key, fingerprint=hashlib.sha256(body).hexdigest())


def _prepare(runtime: Runtime, version: ModelVersion, request: GenerateRequest) -> tuple[int, GeneratePayload]:
    """Return the prompt's length and what is stored of the request, with ``max_tokens`` made a number."""
    tokenizer = runtime.catalog.tokenizer(version)
    num_tokens = len(build_prompt(tokenizer, request.input))
    max_tokens = fit(version.context_window, num_tokens, request.sampling.max_tokens)
    sampling = request.sampling.model_copy(update={"max_tokens": max_tokens})
    return num_tokens, GeneratePayload(input=request.input, sampling=sampling)


def _new_job(
    runtime: Runtime,
    principal: Principal,
    request: GenerateRequest,
    version: ModelVersion,
    payload: GeneratePayload,
    num_tokens: int,
    idempotency: Idempotency | None,
    fingerprint: str,
) -> NewJob:
    settings = runtime.settings
    return NewJob(
        id=new_id("job"),
        tenant_id=principal.tenant_id,
        task=request.task,
        model=version.model,
        model_version=version.version,
        queue=queue_name(version.model, version.version),
        service_class=request.service_class,
        priority=request.priority,
        payload=payload.model_dump(mode="json"),
        input_tokens=num_tokens,
        cost_tokens=num_tokens + (payload.sampling.max_tokens or 0),
        metadata=request.metadata,
        webhook=None if request.webhook is None else request.webhook.model_dump(mode="json"),
        max_attempts=request.max_attempts or settings.default_max_attempts,
        deadline_s=settings.default_deadline_s if request.deadline_ms is None else request.deadline_ms / 1000,
        idempotency=idempotency,
        # Decided by the wave, which looks at the ready window once for all its jobs.
        announce=False,
        fingerprint=fingerprint,
    )
