"""Replaying a dead letter: a new job of the same payload, with attempts and a deadline of its own.

The new job is accepted under an Idempotency-Key made of the old one's id, so that callers who race, or come back after
an answer was lost, get the same job. It blocks and is called in a thread.
"""

from dataclasses import dataclass

from producer_api.runtime import Runtime
from store.errors import Conflict, NotFound, RateLimited, Unavailable
from store.ids import new_id
from store.jobs import dead_letters, jobs
from store.jobs.jobs import Idempotency, Job, NewJob
from store.tenants.api_keys import Principal

_ROUTE = "POST /v1/dead_letters/{job_id}/replay"


@dataclass(frozen=True, slots=True)
class Replay:
    """The job that was made of a dead letter, now or by an earlier call."""

    dead_job_id: str
    job_id: str
    replayed: bool


def replay(runtime: Runtime, principal: Principal, job_id: str) -> Replay:
    """Make a new job of a dead letter, once. Raises NotFound, Forbidden, Conflict, RateLimited, Unavailable."""
    letter = dead_letters.get_dead_letter(runtime.db, principal.tenant_id, job_id)
    principal.check_model(letter.queue)
    if letter.replayed_as is not None:
        return Replay(job_id, letter.replayed_as, replayed=True)
    dead = jobs.get(runtime.db, principal.tenant_id, job_id)
    _check_version(runtime, dead)
    runtime.rate_limits.spend_tokens(principal, dead.input_tokens)
    (accepted,) = runtime.queue_limits.accept([_again(runtime, principal, dead)], runtime.enqueuer.accept)
    if isinstance(accepted, Exception):
        raise accepted
    dead_letters.note_replay(runtime.db, principal.tenant_id, job_id, accepted.job_id, actor=principal.key_id)
    runtime.metrics.accepted.labels(dead.model, str(accepted.replayed).lower()).inc()
    return Replay(job_id, accepted.job_id, accepted.replayed)


def replay_many(
    runtime: Runtime, principal: Principal, *, queue: str | None, code: str | None, limit: int
) -> tuple[list[Replay], bool]:
    """Replay at most ``limit`` dead letters that were not, oldest first; return them, and whether more match.

    Those match whose model the key may use.
    One whose model version is gone is passed over. What was done before a refusal for load is returned; RateLimited and
    Unavailable are raised if that was nothing.
    """
    found = dead_letters.list_dead_letters(
        runtime.db,
        principal.tenant_id,
        queue=queue,
        code=code,
        replayed=False,
        models=principal.models,
        limit=limit + 1,
        descending=False,
    )
    done: list[Replay] = []
    for number, letter in enumerate(found[:limit]):
        try:
            if number:  # the first is the request itself, which is counted already
                runtime.rate_limits.spend_request(principal)
            done.append(replay(runtime, principal, letter.job_id))
        except Conflict:
            continue
        except (RateLimited, Unavailable):
            if not done:
                raise
            return done, True
    return done, len(found) > limit


def _check_version(runtime: Runtime, dead: Job) -> None:
    try:
        runtime.catalog.resolve(dead.queue)
    except NotFound as error:
        raise Conflict(f"the model version that the job asked for is gone: {error.message}") from error


def _again(runtime: Runtime, principal: Principal, dead: Job) -> NewJob:
    time_s = None if dead.deadline_at is None else (dead.deadline_at - dead.created_at).total_seconds()
    max_tokens = dead.payload.get("sampling", {}).get("max_tokens") or 0
    return NewJob(
        id=new_id("job"),
        tenant_id=dead.tenant_id,
        task=dead.task,
        model=dead.model,
        model_version=dead.model_version,
        queue=dead.queue,
        service_class=dead.service_class,
        priority=dead.priority,
        payload=dead.payload,
        input_tokens=dead.input_tokens,
        cost_tokens=dead.input_tokens + max_tokens,
        metadata=dead.metadata,
        webhook=dead.webhook,
        max_attempts=dead.max_attempts,
        deadline_s=runtime.settings.default_deadline_s if time_s is None else time_s,
        idempotency=Idempotency(_ROUTE, dead.id, fingerprint="replay"),
        announce=False,
        api_key_id=principal.key_id,
        limits=runtime.rate_limits.held_by(principal),
    )
