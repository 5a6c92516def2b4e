"""Keeps the leases of the jobs in the engine, and tells the engine which jobs to stop.

Leases are renewed only while the engine makes progress: progress, not presence, is what a lease says. A job whose
lease is gone stops computing by itself and its outcome is written by nobody here. Cancellation is a column that each
renewal returns; Redis is only the fast way to hear of it.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from models.engine.requests import EngineStats, FinishReason
from store.errors import HeadraceError
from workers.runs.claim_client import Ledger
from workers.runs.in_flight import Attempt, HeldJobs

log = structlog.get_logger(__name__)


class Engine(Protocol):
    """What leases ask of the engine."""

    def stats(self) -> EngineStats:
        """Return a reading of the counters."""
        ...

    def cancel(self, request_id: str, reason: FinishReason) -> bool:
        """End a request at the next step; False if it is not inside."""
        ...


class Progress:
    """Says whether the engine moved since it was last asked."""

    def __init__(self) -> None:
        self._steps = -1

    def moved(self, stats: EngineStats) -> bool:
        """True if a step has ended since the last call, or there is nothing to do."""
        moved = stats.steps != self._steps or stats.running + stats.waiting == 0
        self._steps = stats.steps
        return moved


class LeaseKeeper:
    """Renews every ``lease_s`` / 3 from a thread of its own; ``ledger`` should have its own connection."""

    def __init__(
        self,
        ledger: Ledger,
        held: HeldJobs,
        engine: Engine,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._held = held
        self._engine = engine
        self._lease_s = lease_s
        self._clock = clock
        self._progress = Progress()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self.num_lost = 0

    def start(self) -> None:
        """Start renewing."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more; a renewal under way may still end."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def cancel(self, job_id: str) -> None:
        """Stop a job that its owner does not want any more, if it is here."""
        attempt = self._held.get(job_id)
        if attempt is not None and self._engine.cancel(attempt.key, FinishReason.CANCELLED):
            log.info("cancel_passed_on", job_id=job_id)

    def renew_once(self) -> None:
        """Renew what is held, once, and act on the answer."""
        held = self._held.epochs()
        if not held:
            return
        if not self._progress.moved(self._engine.stats()):
            log.warning("leases_not_renewed", reason="the engine made no step", num_jobs=len(held))
            return
        sent_at = self._clock()
        try:
            renewal = self._ledger.renew(held)
        except HeadraceError as error:
            log.warning("leases_not_renewed", reason=error.message, num_jobs=len(held))
            return
        self._held.renewed(renewal.renewed, sent_at)
        if locked := renewal.held - renewal.renewed:
            log.warning("leases_not_renewed", reason="another transaction has locked their rows", num_jobs=len(locked))
        for job_id in renewal.cancelled:
            self.cancel(job_id)
        for job_id in held.keys() - renewal.held:
            self._lose(job_id, held[job_id])

    def drop_expired(self) -> None:
        """Stop every job whose lease must have run out by now, whatever the reason."""
        now = self._clock()
        for job_id, epoch in self._held.epochs().items():
            attempt = self._held.get(job_id)
            if attempt is not None and now - self._held.renewed_at(attempt) > self._lease_s:
                self._lose(job_id, epoch)

    def _run(self) -> None:
        while not self._stopped.wait(self._lease_s / 3):
            try:
                self.renew_once()
            except Exception:
                # Whatever it is, without this thread every job would be lost in silence, one lease after the other.
                log.exception("renewal_failed")
            self.drop_expired()

    def _lose(self, job_id: str, epoch: int) -> None:
        attempt: Attempt | None = self._held.drop(job_id, epoch)
        if attempt is not None:
            self.num_lost += 1
            log.warning("lease_lost", job_id=job_id, epoch=epoch)
            # Not cancelled: that would show text which is not certain, as if the job ended here.
            self._engine.cancel(attempt.key, FinishReason.HANDED_BACK)
