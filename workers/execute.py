"""One job from its claim to its outcome, on one thread that mostly sleeps while the engine works.

    claim ──▶ payload, prompt, where to go on ──▶ engine ──▶ settle ──▶ finish, end frame
      │                                             │          └─ not ours any more: nothing is written
      └─ not to be had: dropped silently            └─ handed back or engine at fault: released with what was emitted

Every path ends in an outcome or in a lease that somebody else takes over; nothing escapes into Celery, whose logs and
events would carry the exception's text. Prompts and outputs are in no log line.
"""

import hashlib
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

import structlog
from pydantic import ValidationError

from models.engine.requests import (
    CheckpointMismatch,
    Completion,
    EngineError,
    EngineRequest,
    FinishReason,
    Grammar,
    SamplingParams,
)
from prompts.prompt import build_prompt, fit
from prompts.tokenizer import Tokenizer
from store.checkpoints import Checkpoint
from store.claims import Claim, Finish
from store.errors import HeadraceError, InvalidRequest, Unavailable
from store.payloads import GeneratePayload, Sampling
from workers import outcome
from workers.admission import Admission
from workers.frames import FrameQueue
from workers.held import Attempt, HeldJobs
from workers.ledger import Ledger
from workers.logprobs import emitted
from workers.metrics import Counters
from workers.outcome import Retry
from workers.resuming import Resumer

log = structlog.get_logger(__name__)


class Engine(Protocol):
    """What a job asks of the engine."""

    def check(self, request: EngineRequest) -> None:
        """Raise CheckpointMismatch if what was emitted is not what the tokens make."""
        ...

    def submit(self, request: EngineRequest) -> Future[Completion]:
        """Take a request; raises RequestTooLong at once if it can never fit."""
        ...

    def cancel(self, request_id: str, reason: FinishReason) -> bool:
        """End a request at the next step."""
        ...


class Executor:
    """Runs jobs of one model version. ``run`` is called from many threads at once."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        held: HeldJobs,
        engine: Engine,
        admission: Admission,
        frames: FrameQueue,
        resumer: Resumer,
        tokenizer: Tokenizer,
        context_window: int,
        lease_s: float,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._held = held
        self._engine = engine
        self._admission = admission
        self._frames = frames
        self._resumer = resumer
        self._tokenizer = tokenizer
        self._context_window = context_window
        self._lease_s = lease_s
        self._counters = counters
        self._clock = clock

    def run(self, job_id: str) -> None:
        """Run a job to its outcome. Raises nothing."""
        try:
            self._run(job_id, self._compute)
        except Exception as error:  # noqa: BLE001 - the lease brings the job back; Celery would log the text
            _log_unexpected(error, job_id)

    def cancel_queued(self, job_id: str) -> None:
        """End a job that was revoked before it ran. Raises nothing."""
        try:
            self._run(job_id, lambda attempt: outcome.cancelled(attempt.claim))
        except Exception as error:  # noqa: BLE001 - as above
            _log_unexpected(error, job_id)

    def run_claimed(self, attempt: Attempt) -> None:
        """Run an attempt that was claimed without a message, to its outcome. Raises nothing."""
        try:
            self._run_claimed(attempt, self._compute)
        except Exception as error:  # noqa: BLE001 - as above
            _log_unexpected(error, attempt.job_id)

    def _run(self, job_id: str, compute: Callable[[Attempt], Finish | Retry]) -> None:
        attempt = self._ledger.claim(job_id) if self._admission.wait_for_turn() else None
        if attempt is None:
            self._counters.hints_dropped.inc()
        else:
            self._run_claimed(attempt, compute)

    def _run_claimed(self, attempt: Attempt, compute: Callable[[Attempt], Finish | Retry]) -> None:
        if not self._held.add(attempt):
            self._ledger.release([attempt], charge=False)
            return
        try:
            verdict = self._guarded(attempt, compute)
            if self._held.settle(attempt):
                self._conclude(attempt, verdict)
        finally:
            self._held.remove(attempt)
            self._frames.forget(attempt.job_id, attempt.epoch)

    def _guarded(self, attempt: Attempt, compute: Callable[[Attempt], Finish | Retry]) -> Finish | Retry:
        try:
            return compute(attempt)
        except (EngineError, HeadraceError) as error:
            return outcome.refused(attempt.claim, error)
        except Exception as error:  # noqa: BLE001 - the job must have an outcome, and its neighbours must not notice
            _log_unexpected(error, attempt.job_id)
            return outcome.again(attempt.claim, "internal_error", "the worker failed while it ran the job")

    def _compute(self, attempt: Attempt) -> Finish | Retry:
        request, start = self._begin(attempt)
        submitted_at = self._clock()
        try:
            completion = self._wait(attempt, request)
        except EngineError as error:
            return outcome.refused(attempt.claim, error, start.lineage)
        waited_s = submitted_at - attempt.claimed_at
        return outcome.completed(attempt.claim, completion, waited_s, start, self._tokenizer)

    def _begin(self, attempt: Attempt) -> tuple[EngineRequest, Checkpoint]:
        """Return the request and where it starts, which readers are told if this is not the job's first attempt."""
        request = self._request(attempt)
        if attempt.epoch == 1:
            return request, Checkpoint(lineage=((1, 0),))
        start = self._resumer.checkpoint(attempt.claim).continued_by(attempt.epoch)
        if start.deltas:
            continued = replace(
                request,
                emitted=start.tokens,
                emitted_deltas=start.deltas,
                emitted_logprobs=emitted(start.logprobs),
            )
            try:
                self._engine.check(continued)
                request = continued
            except CheckpointMismatch as error:
                log.warning("attempt_restarts", job_id=attempt.job_id, epoch=attempt.epoch, reason=str(error))
                start = Checkpoint().continued_by(attempt.epoch)
        self._frames.put_start(attempt.job_id, attempt.epoch, start)
        return request, start

    def _wait(self, attempt: Attempt, request: EngineRequest) -> Completion:
        future = self._engine.submit(request)
        self._admission.entered(len(request.prompt), request.sampling.max_tokens)
        if self._held.is_closed or not self._held.owns(attempt):
            # Lost or handed back while the prompt was built: nobody told a request that was not there yet.
            self._engine.cancel(attempt.key, FinishReason.HANDED_BACK)
        try:
            return future.result()
        finally:
            self._admission.left()

    def _request(self, attempt: Attempt) -> EngineRequest:
        payload = parse_payload(attempt.claim)
        prompt = build_prompt(self._tokenizer, payload.input)
        max_tokens = fit(self._context_window, len(prompt), payload.sampling.max_tokens)
        return EngineRequest(
            attempt.key,
            tuple(prompt),
            sampling_params(seeded(payload.sampling, attempt.job_id), max_tokens),
            attempt.deadline,
            pause_after=outcome.PROBATION_TOKENS if outcome.is_on_probation(attempt.claim) else None,
            cache_salt=attempt.claim.tenant_id,
            class_rank=attempt.claim.class_rank,
        )

    def _conclude(self, attempt: Attempt, verdict: Finish | Retry) -> None:
        try:
            if isinstance(verdict, Retry):
                self._release(attempt, verdict)
            else:
                self._finish(attempt, verdict)
        except Unavailable as error:
            self._counters.outcomes_lost.inc()
            log.error("outcome_lost", job_id=attempt.job_id, epoch=attempt.epoch, error=error.message)

    def _finish(self, attempt: Attempt, finish: Finish) -> None:
        if self._ledger.finish(finish, until=self._too_late(attempt)):
            self._counters.finished.labels(finish.state.value).inc()
            self._frames.put_end(attempt.job_id, attempt.epoch)
            log.info("job_finished", job_id=attempt.job_id, epoch=attempt.epoch, state=finish.state.value)
        else:
            self._counters.stale_finishes.inc()
            log.warning("stale_finish_refused", job_id=attempt.job_id, epoch=attempt.epoch)

    def _release(self, attempt: Attempt, retry: Retry) -> None:
        about = {"job_id": attempt.job_id, "epoch": attempt.epoch, "code": retry.code, "charged": retry.charge}
        log.warning("attempt_released", **about, cleared=retry.cleared, error=retry.message)
        if self._ledger.give_back(retry.release(attempt.claim), until=self._too_late(attempt)):
            self._counters.released.inc()

    def _too_late(self, attempt: Attempt) -> Callable[[], float]:
        # Past the lease by one more the sweeper has had its turn, and a write would be refused anyway.
        return lambda: self._held.renewed_at(attempt) + 2 * self._lease_s


def parse_payload(claim: Claim) -> GeneratePayload:
    """Read the payload column. Raises InvalidRequest that names the fields and quotes no value."""
    try:
        return GeneratePayload.model_validate(claim.payload)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        where = sorted({".".join(str(part) for part in problem["loc"]) for problem in problems})
        raise InvalidRequest(f"the stored payload cannot be read: {', '.join(where)}", code="invalid_payload") from None


def seeded(sampling: Sampling, job_id: str) -> Sampling:
    """Return the sampling with a seed: the job's own where none was asked for.

    So an attempt that has to begin again says what the lost one said, and readers have nothing to take back.
    """
    if sampling.seed is not None:
        return sampling
    digest = hashlib.blake2b(job_id.encode(), digest_size=8).digest()
    return sampling.model_copy(update={"seed": int.from_bytes(digest, "big") >> 1})


def sampling_params(sampling: Sampling, max_tokens: int) -> SamplingParams:
    """Return the engine's spelling of a request's sampling."""
    plain = sampling.model_dump(exclude={"max_tokens", "stop", "grammar"})
    grammar = None if sampling.grammar is None else Grammar(sampling.grammar.kind.value, sampling.grammar.text)
    return SamplingParams(**plain, stop=sampling.stop, max_tokens=max_tokens, grammar=grammar)


def _log_unexpected(error: Exception, job_id: str) -> None:
    """Say where it happened and of what kind; the message is left out, because it may quote a prompt."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    log.error("job_error", job_id=job_id, error=type(error).__name__, where=where)
