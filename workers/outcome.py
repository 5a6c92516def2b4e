"""What a run in the engine means for its job: pure values in, the row to write out.

    Completion stop | length ──▶ succeeded        Completion deadline  ──▶ expired, error deadline_exceeded
    Completion cancelled     ──▶ cancelled        error, retryable     ──▶ Retry while attempts are left
                                                  any other error      ──▶ failed with the error's code

Output and usage of a cancelled or expired job are kept, as far as they came.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.engine.requests import Completion, EngineError, FinishReason
from store.claims import Claim, Finish
from store.errors import HeadraceError
from store.payloads import GenerateOutput, JobErrorBody, Usage
from store.states import JobState

STATES: Mapping[FinishReason, JobState] = {
    FinishReason.STOP: JobState.SUCCEEDED,
    FinishReason.LENGTH: JobState.SUCCEEDED,
    FinishReason.CANCELLED: JobState.CANCELLED,
    FinishReason.DEADLINE: JobState.EXPIRED,
}

# Codes that say nothing of the job itself, so that its owner learns more from hearing that every attempt failed.
ANYTHING = frozenset({"worker_lost", "internal_error"})


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed through no fault of the job: it may run again. ``code`` and ``message`` say what happened."""

    code: str
    message: str


def completed(claim: Claim, completion: Completion, waited_s: float) -> Finish:
    """Return the outcome of a request that the engine ended.

    ``waited_s`` is the time between the claim and the submission to the engine.
    """
    state = STATES[completion.finish_reason]
    late = JobErrorBody(
        code="deadline_exceeded", message="the deadline passed while the job ran", attempt=claim.attempt
    )
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=state,
        output=GenerateOutput(text=completion.text, finish_reason=completion.finish_reason.value).model_dump(),
        error=late.model_dump() if state is JobState.EXPIRED else None,
        usage=usage(claim, completion, waited_s).model_dump(),
        deltas=completion.deltas,
    )


def usage(claim: Claim, completion: Completion, waited_s: float) -> Usage:
    """Return what the run cost."""
    before_s = claim.queued_s + waited_s
    first_s = completion.first_token_s
    return Usage(
        input_tokens=completion.num_prompt_tokens,
        output_tokens=len(completion.token_ids),
        queue_ms=claim.queued_s * 1000,
        first_token_ms=None if first_s is None else (before_s + first_s) * 1000,
        compute_ms=completion.total_s * 1000,
    )


def refused(claim: Claim, error: HeadraceError | EngineError) -> Finish | Retry:
    """Return the outcome of a request that has no completion."""
    message = error.message if isinstance(error, HeadraceError) else str(error)
    if isinstance(error, EngineError) and error.retryable:
        return again(claim, error.code, message)
    return failed(claim, error.code, message)


def again(claim: Claim, code: str, message: str) -> Finish | Retry:
    """Return another try, or the job's end if this was the last one."""
    if claim.attempt < claim.max_attempts:
        return Retry(code, message)
    if code in ANYTHING:
        return failed(claim, "max_attempts_exceeded", f"attempt {claim.attempt} of {claim.max_attempts}: {message}")
    return failed(claim, code, message)


def failed(claim: Claim, code: str, message: str) -> Finish:
    """Return the end of a job that another try cannot help."""
    return Finish(
        job_id=claim.job_id,
        epoch=claim.epoch,
        state=JobState.FAILED,
        output=None,
        error=JobErrorBody(code=code, message=message, attempt=claim.attempt).model_dump(),
        usage=None,
        deltas=(),
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
    )
