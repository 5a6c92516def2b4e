"""Replays a dead letter: a new job with the same payload, new attempts and a new deadline.

The new job has an idempotency key made from the old job's id, so that concurrent and repeated calls get the same job.
Blocking: called in a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.request_spans import record_accept
from headrace.store.errors import Conflict, NotFound, RateLimited, Unavailable
from headrace.store.ids import new_id
from headrace.store.jobs import dead_letters, jobs
from headrace.store.jobs.flow_turns import is_added
from headrace.store.jobs.jobs import Idempotency, Job, NewJob
from headrace.store.registry.models import queue_name
from headrace.store.schema.job_states import FLOW_TASK, UNSERVED_QUEUE
from headrace.store.schema.version_states import VersionState
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext, now_ns

_ROUTE = "POST /v1/dead_letters/{job_id}/replay"


@dataclass(frozen=True, slots=True)
class ReplayedJob:
    """The job that replays a dead letter, created now or by an earlier call."""

    dead_job_id: str
    job_id: str
    replayed: bool


def replay(runtime: Runtime, principal: Principal, job_id: str, *, trace: TraceContext | None = None) -> ReplayedJob:
    """Create a new job from a dead letter, once. Raises NotFound, Forbidden, Conflict, RateLimited, Unavailable.

    ``trace``: the span of the request.
    """
    letter = dead_letters.get_dead_letter(runtime.db, principal.tenant_id, job_id)
    dead = jobs.get(runtime.db, principal.tenant_id, job_id)
    steps = _accepted_steps(runtime, dead)
    for ran in steps or [dead]:
        principal.check_model(queue_name(ran.model, ran.model_version))
    if letter.replayed_as is not None:
        return ReplayedJob(job_id, letter.replayed_as, replayed=True)
    for ran in steps or [dead]:
        _check_version(runtime, ran)
    runtime.rate_limits.spend_tokens(principal, sum(ran.input_tokens for ran in steps or [dead]))
    start_ns, job = now_ns(), _replay_job(runtime, principal, dead, runtime.tracing.within(trace))
    if steps:
        job = _with_steps(job, dead, steps)
    accepted = runtime.queue_limits.accept(job, runtime.enqueuer.accept)
    record_accept(runtime.tracing, None if accepted.replayed else job, start_ns, parent=trace)
    dead_letters.note_replay(runtime.db, principal.tenant_id, job_id, accepted.job_id, actor=principal.key_id)
    runtime.metrics.count_accepted(
        dead.model, dead.model_version, dead.task, dead.service_class, replayed=accepted.replayed
    )
    return ReplayedJob(job_id, accepted.job_id, accepted.replayed)


def replay_many(
    runtime: Runtime,
    principal: Principal,
    *,
    queue: str | None,
    code: str | None,
    limit: int,
    trace: TraceContext | None = None,
) -> tuple[list[ReplayedJob], bool]:
    """ReplayedJob at most ``limit`` dead letters not replayed yet, oldest first; return them, and True if more match.

    Only models that the key may use match. A dead letter of a removed model version is skipped. RateLimited and
    Unavailable end the loop; they are raised only if nothing was replayed.
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
    done: list[ReplayedJob] = []
    for number, letter in enumerate(found[:limit]):
        try:
            if number:  # the first is the HTTP request itself, already counted
                runtime.rate_limits.spend_request(principal)
            done.append(replay(runtime, principal, letter.job_id, trace=trace))
        except Conflict:
            continue
        except (RateLimited, Unavailable):
            if not done:
                raise
            return done, True
    return done, len(found) > limit


def _accepted_steps(runtime: Runtime, dead: Job) -> list[Job]:
    """Return the steps that the job was accepted with, without those that a step added; none for other jobs."""
    if dead.task != FLOW_TASK:
        return []
    found = jobs.list_steps(runtime.db, dead.tenant_id, dead.id)
    return [step for step in found if step.step is not None and not is_added(step.step)]


def _with_steps(flow: NewJob, dead: Job, steps: Sequence[Job]) -> NewJob:
    """Return the flow with all its steps anew. The answer is the accepted step whose place an added one may have."""
    answer = next(step for step in steps if step.step == _answer_name(dead, steps))
    made = {step.id: _new_step(flow, step) for step in steps}
    return replace(flow, steps=tuple(made.values()), answer_id=made[answer.id].id)


def _answer_name(dead: Job, steps: Sequence[Job]) -> str | None:
    for step in steps:
        if step.id == dead.answer_id:
            return step.step
    streamed = [step["name"] for step in dead.payload["steps"] if step["stream"]]
    needed = {name for step in dead.payload["steps"] for name in step["needs"]}
    last = [step["name"] for step in dead.payload["steps"] if step["name"] not in needed]
    return str((streamed or last)[0])


def _new_step(flow: NewJob, step: Job) -> NewJob:
    needs = tuple(step.needs or ())
    max_tokens = step.payload.get("sampling", {}).get("max_tokens") or 0
    return replace(
        flow,
        id=new_id("job"),
        idempotency=None,
        task=step.task,
        model=step.model,
        model_version=step.model_version,
        queue=UNSERVED_QUEUE if needs else queue_name(step.model, step.model_version),
        payload=step.payload,
        input_tokens=step.input_tokens,
        cost_tokens=step.input_tokens + max_tokens,
        metadata={},
        webhook=step.webhook,
        parent_id=flow.id,
        step=step.step,
        needs=needs,
    )


def _check_version(runtime: Runtime, dead: Job) -> None:
    queue = queue_name(dead.model, dead.model_version)
    try:
        version = runtime.catalog.resolve(queue)
    except NotFound as error:
        raise Conflict(f"the job's model version no longer exists: {error.message}") from error
    if version.state is VersionState.REJECTED:
        raise Conflict(f"{queue} has failed its verification: {version.state_reason}", code="model_rejected")


def _replay_job(runtime: Runtime, principal: Principal, dead: Job, trace: TraceContext | None) -> NewJob:
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
        traceparent=None if trace is None else trace.header,
    )
