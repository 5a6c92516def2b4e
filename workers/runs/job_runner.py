"""Runs one job from its claim to its outcome, on one thread that mostly waits for the engine.

    claim ──▶ task: payload, engine ──▶ settle ──▶ finish, end frame
      │                  │                 └─ the attempt was lost: nothing is written
      │                  └─ handed back or engine failure: released with the output so far
      └─ not claimed: the message is dropped

The task's part is in ``workers.tasks``; it runs its request through ``EngineClient``. Every path ends in an outcome, or
in a lease that expires so that another worker takes the job. No exception reaches Celery, because its logs and events
would show the text. Prompts and outputs are in no log line.
"""

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import structlog

from headrace.models.engine.protocol import Engine
from headrace.models.engine.requests import EngineError, EngineStopped, FinishReason
from headrace.prompts.sandbox.turns import on_behalf_of
from headrace.store.errors import HeadraceError, Unavailable
from headrace.store.jobs.claims import Finish, Unclaimed
from headrace.store.metrics.worker_metrics import WorkerMetrics
from headrace.store.schema.job_states import JobState
from headrace.store.tracing.tracing import read_traceparent
from headrace.workers.runs import outcome
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.claim_client import ClaimClient
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, InFlightAttempts
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.parent_work import NO_PARENTS, ParentWork
from headrace.workers.runs.stream_publisher import FrameQueue

log = structlog.get_logger(__name__)

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class Work(Protocol):
    """The part of a job that depends on its task."""

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Compute the payload with the engine, and return the outcome. May raise EngineError, HeadraceError."""
        ...


class EngineClient(Generic[RequestT, ResultT]):
    """Runs the request of an attempt in the engine, on the job's thread. Called from many threads at once."""

    def __init__(
        self,
        engine: Engine[RequestT, ResultT],
        admission: EngineAdmission,
        in_flight: InFlightAttempts,
        spans: AttemptSpans,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._in_flight = in_flight
        self._spans = spans

    def run(self, attempt: Attempt, request: RequestT, *, num_prompt: int, max_tokens: int) -> ResultT:
        """Submit a request and return its result. Raises what ``submit`` raises, and the request's EngineError.

        ``num_prompt`` and ``max_tokens`` are the size of the request in tokens, for the admission of later ones.
        """
        submitted_at = time.monotonic()
        future = self._engine.submit(request)
        self._admission.entered(num_prompt, max_tokens)
        self._cancel_if_over(attempt)
        try:
            result = future.result()
        finally:
            self._admission.left()
        self._spans.computed(attempt, result, submitted_at)
        return result

    def run_group(
        self,
        attempt: Attempt,
        requests: Sequence[RequestT],
        *,
        num_prompt: int,
        max_tokens: int,
        is_last: Callable[[ResultT], bool],
        on_result: Callable[[int, ResultT], object],
    ) -> dict[int, ResultT]:
        """Submit several requests of one attempt; return their results by position.

        At most ``choices_at_once`` of the admission are in the engine. After a result with ``is_last`` no more are
        submitted: those have no result. ``on_result`` is called on the engine's thread, behind the deltas of a request.
        After the first error the other requests are cancelled, and it is raised when they have ended. An error of a
        request that had begun goes before that of one which waited in an engine that died, or which it did not take.
        """
        waiting = deque(enumerate(requests))
        running: dict[Future[ResultT], int] = {}
        results: dict[int, ResultT] = {}
        failure: BaseException | None = None
        submitted_at = time.monotonic()
        self._admission.entered(num_prompt, max_tokens)
        try:
            while waiting or running:
                while waiting and len(running) < self._admission.choices_at_once:
                    position, request = waiting.popleft()
                    running[self._submitted(request, position, on_result)] = position
                    self._cancel_if_over(attempt)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    position = running.pop(future)
                    if (error := future.exception()) is not None:
                        failure = error if failure is None else max(failure, error, key=_blame)
                        self.cancel(attempt)
                    else:
                        results[position] = future.result()
                    if failure is not None or is_last(results[position]):
                        waiting.clear()
        finally:
            self._admission.left()
        if failure is not None:
            raise failure
        if 0 in results:
            # The phases of the first request stand for all: the others begin with it, or wait for room.
            self._spans.computed(attempt, results[0], submitted_at)
        return results

    def _submitted(
        self, request: RequestT, position: int, on_result: Callable[[int, ResultT], object]
    ) -> Future[ResultT]:
        """Submit a request. The future has its outcome after ``on_result`` has returned."""
        outcome_of: Future[ResultT] = Future()

        def done(ended: Future[ResultT]) -> None:
            try:
                result = ended.result()
                on_result(position, result)
            except Exception as error:  # noqa: BLE001 - the job's thread gets it raised
                outcome_of.set_exception(error)
            else:
                outcome_of.set_result(result)

        try:
            self._engine.submit(request).add_done_callback(done)
        except EngineError as error:
            outcome_of.set_exception(error)
        return outcome_of

    def _cancel_if_over(self, attempt: Attempt) -> None:
        if self._in_flight.is_closed or not self._in_flight.owns(attempt):
            # The attempt was lost or handed back before its request was in the engine, so nothing has cancelled it.
            self._engine.cancel(attempt.id, FinishReason.HANDED_BACK)
        elif self._in_flight.is_cancelled(attempt):
            # While no request of the attempt was in the engine, or one that had ended already.
            self._engine.cancel(attempt.id, FinishReason.CANCELLED)

    def check(self, request: RequestT) -> None:
        """Raise as ``Engine.check``."""
        self._engine.check(request)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel the attempt: its request in the engine, and those that it submits later."""
        self._in_flight.cancel(attempt.job_id)
        self._engine.cancel(attempt.id, FinishReason.CANCELLED)


class JobRunner:
    """Runs jobs of one model version. ``run`` is called from many threads at once."""

    def __init__(
        self,
        *,
        claim_client: ClaimClient,
        in_flight: InFlightAttempts,
        work: Work,
        parents: ParentWork = NO_PARENTS,
        admission: EngineAdmission,
        frames: FrameQueue,
        lease_s: float,
        metrics: WorkerMetrics,
        spans: AttemptSpans,
    ) -> None:
        self._claim_client = claim_client
        self._in_flight = in_flight
        self._work = work
        self._parents = parents
        self._admission = admission
        self._frames = frames
        self._lease_s = lease_s
        self._metrics = metrics
        self._spans = spans

    def run(self, job_id: str, *, urgent: bool = False) -> Finish | Retry | Unclaimed | None:
        """Run a job to its outcome. ``urgent``: its claim does not wait for others to share a statement. Raises
        nothing.

        Returns the stored outcome, that the job went back to the queue, or why it was not claimed; None if it was lost.
        """
        try:
            return self._run(job_id, self._compute, urgent=urgent)
        except Exception as error:  # noqa: BLE001 - the job comes back after its lease; Celery would log the text
            _log_unexpected(error, job_id)
            return None

    def cancel_queued(self, job_id: str) -> None:
        """End a job that was revoked before it ran. Raises nothing."""
        try:
            self._run(job_id, lambda attempt: outcome.cancelled(attempt.claim))
        except Exception as error:  # noqa: BLE001 - as above
            _log_unexpected(error, job_id)

    def run_claimed(self, attempt: Attempt) -> Finish | Retry | None:
        """Run an attempt that was claimed without a message; return as ``run`` does. Raises nothing."""
        try:
            return self._run_claimed(attempt, self._compute)
        except Exception as error:  # noqa: BLE001 - as above
            _log_unexpected(error, attempt.job_id)
            return None

    def _run(
        self, job_id: str, compute: Callable[[Attempt], Finish | Retry], *, urgent: bool = False
    ) -> Finish | Retry | Unclaimed | None:
        attempt = self._claim_client.claim(job_id, urgent=urgent) if self._admission.wait_for_turn() else None
        if attempt is None:
            self._metrics.hints_dropped.inc()
            return self._claim_client.unclaimed(job_id)
        return self._run_claimed(attempt, compute)

    def _run_claimed(self, attempt: Attempt, compute: Callable[[Attempt], Finish | Retry]) -> Finish | Retry | None:
        if not self._in_flight.add(attempt):
            self._claim_client.release([attempt], charge=False)
            return None
        # Every event of this thread has them from here on.
        with structlog.contextvars.bound_contextvars(**_named(attempt)), on_behalf_of(attempt.claim.tenant_id):
            try:
                verdict = self._guarded(attempt, compute)
                return self._conclude(attempt, verdict) if self._in_flight.settle(attempt) else None
            finally:
                self._in_flight.remove(attempt)
                self._frames.forget(attempt.id)

    def _compute(self, attempt: Attempt) -> Finish | Retry:
        compute = self._work.compute
        return compute(attempt) if attempt.claim.parent_id is None else self._parents.compute(attempt, compute)

    def _guarded(self, attempt: Attempt, compute: Callable[[Attempt], Finish | Retry]) -> Finish | Retry:
        try:
            return compute(attempt)
        except (EngineError, HeadraceError) as error:
            return outcome.refused(attempt.claim, error)
        except Exception as error:  # noqa: BLE001 - the job must have an outcome, and other jobs must go on
            _log_unexpected(error, attempt.job_id)
            return outcome.again(attempt.claim, "internal_error", "the worker failed while it ran the job")

    def _conclude(self, attempt: Attempt, verdict: Finish | Retry) -> Finish | Retry | None:
        """Write the verdict; return it if it was written."""
        began_at = time.monotonic()
        try:
            is_written = (
                self._finish(attempt, verdict) if isinstance(verdict, Finish) else self._release(attempt, verdict)
            )
            if is_written:
                self._spans.ended(attempt, verdict, began_at, time.monotonic())
                return verdict
        except Unavailable as error:
            self._metrics.outcomes_lost.inc()
            log.error("outcome_lost", error=error.message)
        return None

    def _finish(self, attempt: Attempt, finish: Finish) -> bool:
        finish = replace(finish, is_source=attempt.claim.is_source, parent_id=attempt.claim.parent_id)
        if self._claim_client.finish(finish, until=self._too_late(attempt)):
            self._frames.put_end(attempt.id)
            self._count_finished(attempt, finish)
            log.info("job_finished", state=finish.state.value)
            return True
        self._metrics.stale_finishes.inc()
        log.warning("stale_finish_refused")
        return False

    def _count_finished(self, attempt: Attempt, finish: Finish) -> None:
        class_rank = attempt.claim.class_rank
        self._metrics.count_finished(class_rank, finish.state.value, (finish.error or {}).get("code"))
        if (first_token_ms := (finish.usage or {}).get("first_token_ms")) is not None:
            self._metrics.times[class_rank].first_token.observe(first_token_ms / 1000)
        if finish.state is JobState.SUCCEEDED:
            took_s = attempt.claim.queued_s + time.monotonic() - attempt.claimed_at
            self._metrics.times[class_rank].total.observe(took_s)
        output = finish.output or {}
        for one in (output, *(output.get("choices") or ())):
            for hit in one.get("policy") or ():
                self._metrics.count_policy_action(hit["action"], hit["count"])

    def _release(self, attempt: Attempt, retry: Retry) -> bool:
        about = {"code": retry.code, "charged": retry.charge}
        log.warning("attempt_released", **about, cleared=retry.cleared, error=retry.message)
        is_ours = self._claim_client.give_back(retry.release(attempt.claim), until=self._too_late(attempt))
        if is_ours:
            self._metrics.count_released(retry.code)
        return is_ours

    def _too_late(self, attempt: Attempt) -> Callable[[], float]:
        # One lease after the end of the lease the sweeper has taken the job, and a write would be refused.
        return lambda: self._in_flight.renewed_at(attempt) + 2 * self._lease_s


def _blame(failure: BaseException) -> int:
    """Return how far a request had come: 0 if the engine did not take it, 1 in the engine, 2 in a step."""
    if not isinstance(failure, EngineStopped):
        return 2
    return 0 if failure.progress is None else 1 + failure.has_begun


def _named(attempt: Attempt) -> dict[str, object]:
    trace = read_traceparent(attempt.claim.traceparent)
    named: dict[str, object] = {"job_id": attempt.job_id, "epoch": attempt.epoch}
    return named if trace is None else {**named, "trace_id": trace.trace_id}


def _log_unexpected(error: Exception, job_id: str) -> None:
    """Log the kind and the place of an error. Its message is left out, because it may quote a prompt."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    log.error("job_error", job_id=job_id, error=type(error).__name__, where=where)
