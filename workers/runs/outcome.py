"""Maps the result of a request in the engine to the outcome of its job: pure values in, the row to write out.

    stop | length            ──▶ succeeded
    cancelled                ──▶ cancelled
    deadline                 ──▶ expired, error deadline_exceeded
    handed back              ──▶ Retry, not charged
    a policy's rule blocks   ──▶ failed, policy_blocked_output; the output is not kept
    error, retryable         ──▶ Retry while attempts are left
    engine died              ──▶ Retry: charged, and in isolation next time
    server went away         ──▶ Retry, not charged the first times; then as if the engine had died
    no key for a value       ──▶ Retry, not charged, a while later
    any other error          ──▶ failed with the error's code

Output and usage of a cancelled or expired job are kept. A Retry carries the emitted output, from which the next attempt
continues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from headrace.models.engine.requests import CompletionOutput, EmittedOutput, EngineError, EngineStopped, FinishReason
from headrace.models.external.upstream import UpstreamBusy, UpstreamLost
from headrace.prompts.answer_reader import read_answer
from headrace.prompts.detokenizer import spell
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import CannotOpen, HeadraceError, Unavailable
from headrace.store.jobs.claims import Claim, Finish, Release
from headrace.store.payloads.job_payload import BlockedBody, JobErrorBody, Usage
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint, Logprobs
from headrace.store.tasks.generate import GenerateOutput, GeneratePayload, PromptEcho, TokenLogprob
from headrace.workers.runs.logprobs import kept_by_delta
from headrace.workers.runs.output_guard import FilteredOutput, OutputGuard

STATES: Mapping[FinishReason, JobState] = {
    FinishReason.STOP: JobState.SUCCEEDED,
    FinishReason.LENGTH: JobState.SUCCEEDED,
    FinishReason.CANCELLED: JobState.CANCELLED,
    FinishReason.DEADLINE: JobState.EXPIRED,
}

# Codes that are not about the job itself: after the last attempt the owner gets max_attempts_exceeded instead.
ANYTHING = frozenset({"worker_lost", "internal_error"})


PROBATION_TOKENS = 8
"""After its worker died once, a job runs in isolation for this many tokens. If it survives, another job was the
cause."""


FREE_LOSSES = 3
"""Attempts of a job that may end uncharged before one that loses its inference server counts as a crash: a request that
ends the server each time must not do so for ever, and must not take the other requests along."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt ended through no fault of the job: it may run again. ``code`` and ``message`` give the reason.

    The other fields are those of ``store.jobs.claims.Release``.
    """

    code: str
    message: str
    charge: bool = True
    crashed: bool = False
    cleared: bool = False
    checkpoint: Checkpoint | None = None
    first_token_ms: float | None = None
    later: bool = False

    def release(self, claim: Claim) -> Release:
        """Return how the job goes back to the queue."""
        return Release(
            claim.job_id,
            claim.epoch,
            self.charge,
            self.crashed,
            self.cleared,
            self.checkpoint,
            claim.tenant_id,
            later=self.later,
            first_token_ms=self.first_token_ms,
            parent_id=claim.parent_id,
        )


def is_on_probation(claim: Claim) -> bool:
    """Return True if the job runs in isolation for a few tokens only. After a second crash it does so to its end."""
    return claim.is_suspect and claim.crashes == 1


def completed(
    claim: Claim,
    payload: GeneratePayload,
    completion: CompletionOutput,
    waited_s: float,
    start: Checkpoint,
    tokenizer: Tokenizer,
    rules: OutputGuard | None = None,
    *,
    prompt: PromptEcho | None = None,
) -> Finish | Retry:
    """Return the outcome of a request that the engine ended.

    ``waited_s`` is the time between the claim and the submission to the engine; ``start`` is the checkpoint from which
    the attempt continued; ``rules`` are the rules of the tenant's policy for the output; ``prompt`` is for the output.
    """
    if completion.finish_reason is FinishReason.HANDED_BACK:
        return _handed_back(claim, completion, waited_s, start)
    filtered = FilteredOutput(completion.text, completion.deltas) if rules is None else rules.apply(completion.deltas)
    used = usage(claim, completion, waited_s, start).model_dump()
    if filtered.blocked_by is not None:
        return blocked(claim, filtered.blocked_by, used)
    state = STATES[completion.finish_reason]
    if rules is not None and rules.holds_back:
        # Logprobs would reveal tokens that the policy has replaced.
        completion = replace(completion, logprobs=())
    logprobs = kept_by_delta(completion.delta_token_ids, completion.logprobs) if completion.logprobs else ()
    output = answer(payload, claim.job_id, filtered.text, completion.finish_reason)
    likely = _spelled(completion, logprobs, tokenizer)
    added = {"logprobs": likely, "policy": filtered.hits or None, "stop_text": completion.stop_text, "prompt": prompt}
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=state,
        output=output.model_copy(update=added).model_dump(exclude_none=True),
        error=expiry_error(claim) if state is JobState.EXPIRED else None,
        usage=used,
        deltas=filtered.pieces,
        lineage=start.lineage,
        logprobs=logprobs,
        tenant_id=claim.tenant_id,
    )


def expiry_error(claim: Claim) -> dict[str, Any]:
    """Return the error of a job whose deadline passed while it ran."""
    message = "the deadline passed while the job ran"
    return JobErrorBody(code="deadline_exceeded", message=message, attempt=claim.attempt).model_dump()


def blocked(claim: Claim, rule: str, used: dict[str, Any]) -> Finish:
    """Return the end of a job with an output that a rule blocks. The generated tokens are charged."""
    message = f"the policy's rule {rule} does not let this output out"
    error = BlockedBody(code="policy_blocked_output", message=message, attempt=claim.attempt, rule=rule)
    return replace(failed(claim, error.code, message), error=error.model_dump(), usage=used)


def answer(payload: GeneratePayload, job_id: str, text: str, reason: FinishReason) -> GenerateOutput:
    """Return the output for the job's owner: the text, and the reasoning and the tool calls in it."""
    read = read_answer(payload, job_id, text, is_cut=reason is not FinishReason.STOP)
    if not read.calls:
        # It is another one after reasoning, and if the end of the text cut off the beginning of a call.
        content = None if read.content == text else read.content
        return GenerateOutput(text=text, finish_reason=reason.value, content=content, reasoning=read.reasoning)
    finish_reason = "tool_calls" if reason is FinishReason.STOP else reason.value
    return GenerateOutput(
        text=text,
        finish_reason=finish_reason,
        content=read.content,
        reasoning=read.reasoning,
        tool_calls=read.calls,
    )


def _spelled(
    completion: CompletionOutput, logprobs: Sequence[Logprobs], tokenizer: Tokenizer
) -> tuple[TokenLogprob, ...] | None:
    """Return the logprobs as the API shows them: None without any, as for an answer without text."""
    return spell(tokenizer, chain.from_iterable(logprobs)) if completion.logprobs else None


def _handed_back(claim: Claim, completion: CompletionOutput, waited_s: float, start: Checkpoint) -> Retry:
    num_new = len(completion.token_ids) - len(start.tokens)
    retry = handed_back(
        cleared=is_on_probation(claim) and num_new >= PROBATION_TOKENS,
        checkpoint=shown(completion.progress, start, claim.queued_s + waited_s),
    )
    return replace(retry, first_token_ms=_ms(waited_s, completion.first_token_s))


def handed_back(*, cleared: bool, checkpoint: Checkpoint | None) -> Retry:
    """Return that the attempt was handed back, with the output that it has shown."""
    message = "the attempt was handed back for another to go on"
    return Retry("handed_back", message, charge=False, cleared=cleared, checkpoint=checkpoint)


def shown(progress: EmittedOutput | None, start: Checkpoint, before_s: float) -> Checkpoint | None:
    """Return the output that an attempt has shown; None if there is none.

    ``before_s``: from the job's acceptance to the submission to the engine.
    """
    if progress is None or not progress.deltas:
        return None
    logprobs = kept_by_delta(progress.token_ids, progress.logprobs)
    first_token_s = job_first_token_s(start, before_s, progress.first_token_s)
    return Checkpoint(progress.deltas, progress.token_ids, start.lineage, logprobs, first_token_s=first_token_s)


def job_first_token_s(start: Checkpoint, before_s: float, own_s: float | None) -> float | None:
    """Return the time from acceptance to the first token of the answer: that of the attempt which began it."""
    if start.deltas:
        return start.first_token_s
    return None if own_s is None else before_s + own_s


def _ms(before_s: float, after_s: float | None) -> float | None:
    return None if after_s is None else round((before_s + after_s) * 1000, 3)


def usage(claim: Claim, completion: CompletionOutput, waited_s: float, start: Checkpoint) -> Usage:
    """Return the usage."""
    first_token_s = job_first_token_s(start, claim.queued_s + waited_s, completion.first_token_s)
    return Usage(
        input_tokens=completion.num_prompt_tokens,
        output_tokens=completion.num_output_tokens,
        cached_tokens=completion.num_cached_tokens,
        reasoning_tokens=completion.num_reasoning_tokens,
        queue_ms=claim.queued_s * 1000,
        first_token_ms=_ms(0.0, first_token_s),
        attempt_first_token_ms=_ms(waited_s, completion.first_token_s),
        compute_ms=completion.total_s * 1000,
    )


def stopped(claim: Claim, error: EngineError, waited_s: float, start: Checkpoint) -> Finish | Retry:
    """Return the outcome of a request that the engine did not end, with the output that it has shown."""
    verdict = refused(claim, error, shown(error.progress, start, claim.queued_s + waited_s))
    if isinstance(verdict, Finish) or error.progress is None:
        return verdict
    return replace(verdict, first_token_ms=_ms(waited_s, error.progress.first_token_s))


def refused(claim: Claim, error: HeadraceError | EngineError, checkpoint: Checkpoint | None = None) -> Finish | Retry:
    """Return the outcome of a request that failed. ``checkpoint``: the output that was shown."""
    if not isinstance(error, EngineError):
        return _refused_outside(claim, error)
    if isinstance(error, EngineStopped):
        # A request that was in no step yet cannot be the cause. In the engine it is charged all the same: its attempts
        # bound what no step has ended.
        was_inside = error.progress is not None
        crashed = was_inside and error.has_begun
        return Retry(error.code, str(error), charge=was_inside, crashed=crashed, checkpoint=checkpoint)
    if isinstance(error, UpstreamLost):
        # The server was away or restarted, which is most likely no fault of the job.
        num_uncharged = claim.epoch - claim.restarts_after - claim.attempt
        is_free = isinstance(error, UpstreamBusy) or num_uncharged < FREE_LOSSES
        if is_free or claim.attempt < claim.max_attempts:
            return Retry(error.code, str(error), charge=not is_free, crashed=not is_free, checkpoint=checkpoint)
    if error.retryable:
        return again(claim, error.code, str(error), checkpoint)
    return failed(claim, error.code, str(error))


def _refused_outside(claim: Claim, error: HeadraceError) -> Finish | Retry:
    """Return the outcome of a request that failed outside of the engine."""
    if isinstance(error, Unavailable):
        return again(claim, error.code, error.message)
    if isinstance(error, CannotOpen) and error.code == CannotOpen.default_code:
        # For a worker that has the key, as with a payload that cannot be opened.
        return Retry(error.code, error.message, charge=False, later=True)
    return failed(claim, error.code, error.message)


def again(claim: Claim, code: str, message: str, checkpoint: Checkpoint | None = None) -> Finish | Retry:
    """Return a retry, or the job's end after its last attempt."""
    if claim.attempt < claim.max_attempts:
        return Retry(code, message, checkpoint=checkpoint)
    if code in ANYTHING:
        return failed(claim, "max_attempts_exceeded", f"attempt {claim.attempt} of {claim.max_attempts}: {message}")
    return failed(claim, code, message)


def failed(claim: Claim, code: str, message: str) -> Finish:
    """Return the end of a job that failed."""
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=JobState.FAILED,
        output=None,
        error=JobErrorBody(code=code, message=message, attempt=claim.attempt).model_dump(),
        usage=None,
        deltas=(),
        tenant_id=claim.tenant_id,
    )


def cancelled(claim: Claim) -> Finish:
    """Return the end of a job that was cancelled before it reached the engine."""
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=JobState.CANCELLED,
        output=None,
        error=None,
        usage=None,
        deltas=(),
        tenant_id=claim.tenant_id,
    )
