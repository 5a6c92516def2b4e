"""One job from its claim to its outcome, on one thread that mostly sleeps while the engine works.

    claim ──▶ work: payload, engine ──▶ settle ──▶ finish, end frame
      │                  │                 └─ not ours any more: nothing is written
      │                  └─ handed back or engine at fault: released with what was emitted
      └─ not to be had: dropped silently

What the work is depends on the task (``workers.tasks.generate``, ``workers.tasks.embed``). Every path ends in an
outcome or in a lease that somebody else takes over; nothing escapes into Celery, whose logs and events would carry the
exception's text. Prompts and outputs are in no log line.
"""

import traceback
from collections.abc import Callable
from typing import Protocol

import structlog

from models.engine.requests import EngineError
from store.errors import HeadraceError, Unavailable
from store.jobs.claims import Finish
from workers.metrics import Counters
from workers.runs import outcome
from workers.runs.claim_client import Ledger
from workers.runs.engine_admission import Admission
from workers.runs.in_flight import Attempt, HeldJobs
from workers.runs.outcome import Retry
from workers.runs.stream_publisher import FrameQueue

log = structlog.get_logger(__name__)


class Work(Protocol):
    """What is done for a job of one task."""

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Have the engine compute the payload, and return the outcome. May raise EngineError, HeadraceError."""
        ...


class Executor:
    """Runs jobs of one model version. ``run`` is called from many threads at once."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        held: HeldJobs,
        work: Work,
        admission: Admission,
        frames: FrameQueue,
        lease_s: float,
        counters: Counters,
    ) -> None:
        self._ledger = ledger
        self._held = held
        self._work = work
        self._admission = admission
        self._frames = frames
        self._lease_s = lease_s
        self._counters = counters

    def run(self, job_id: str, *, hurries: bool = False) -> Finish | Retry | None:
        """Run a job to its outcome; it is claimed without waiting for others if it ``hurries``. Raises nothing.

        Returns what was stored: how the job ended, or that it went back to the queue; None if it was not to be had.
        """
        try:
            return self._run(job_id, self._work.compute, hurries=hurries)
        except Exception as error:  # noqa: BLE001 - the lease brings the job back; Celery would log the text
            _log_unexpected(error, job_id)
            return None

    def cancel_queued(self, job_id: str) -> None:
        """End a job that was revoked before it ran. Raises nothing."""
        try:
            self._run(job_id, lambda attempt: outcome.cancelled(attempt.claim))
        except Exception as error:  # noqa: BLE001 - as above
            _log_unexpected(error, job_id)

    def run_claimed(self, attempt: Attempt) -> None:
        """Run an attempt that was claimed without a message, to its outcome. Raises nothing."""
        try:
            self._run_claimed(attempt, self._work.compute)
        except Exception as error:  # noqa: BLE001 - as above
            _log_unexpected(error, attempt.job_id)

    def _run(
        self, job_id: str, compute: Callable[[Attempt], Finish | Retry], *, hurries: bool = False
    ) -> Finish | Retry | None:
        attempt = self._ledger.claim(job_id, hurries=hurries) if self._admission.wait_for_turn() else None
        if attempt is None:
            self._counters.hints_dropped.inc()
            return None
        return self._run_claimed(attempt, compute)

    def _run_claimed(self, attempt: Attempt, compute: Callable[[Attempt], Finish | Retry]) -> Finish | Retry | None:
        if not self._held.add(attempt):
            self._ledger.release([attempt], charge=False)
            return None
        try:
            verdict = self._guarded(attempt, compute)
            return self._conclude(attempt, verdict) if self._held.settle(attempt) else None
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

    def _conclude(self, attempt: Attempt, verdict: Finish | Retry) -> Finish | Retry | None:
        """Write the verdict; return it if that was done."""
        try:
            is_written = (
                self._finish(attempt, verdict) if isinstance(verdict, Finish) else self._release(attempt, verdict)
            )
            return verdict if is_written else None
        except Unavailable as error:
            self._counters.outcomes_lost.inc()
            log.error("outcome_lost", job_id=attempt.job_id, epoch=attempt.epoch, error=error.message)
        return None

    def _finish(self, attempt: Attempt, finish: Finish) -> bool:
        if self._ledger.finish(finish, until=self._too_late(attempt)):
            self._counters.finished.labels(finish.state.value).inc()
            self._frames.put_end(attempt.job_id, attempt.epoch)
            log.info("job_finished", job_id=attempt.job_id, epoch=attempt.epoch, state=finish.state.value)
            return True
        self._counters.stale_finishes.inc()
        log.warning("stale_finish_refused", job_id=attempt.job_id, epoch=attempt.epoch)
        return False

    def _release(self, attempt: Attempt, retry: Retry) -> bool:
        about = {"job_id": attempt.job_id, "epoch": attempt.epoch, "code": retry.code, "charged": retry.charge}
        log.warning("attempt_released", **about, cleared=retry.cleared, error=retry.message)
        is_ours = self._ledger.give_back(retry.release(attempt.claim), until=self._too_late(attempt))
        if is_ours:
            self._counters.released.inc()
        return is_ours

    def _too_late(self, attempt: Attempt) -> Callable[[], float]:
        # Past the lease by one more the sweeper has had its turn, and a write would be refused anyway.
        return lambda: self._held.renewed_at(attempt) + 2 * self._lease_s


def _log_unexpected(error: Exception, job_id: str) -> None:
    """Say where it happened and of what kind; the message is left out, because it may quote a prompt."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    log.error("job_error", job_id=job_id, error=type(error).__name__, where=where)
