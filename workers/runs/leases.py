"""Renews the leases of the jobs in flight, and stops the jobs that were cancelled or have lost their lease.

Leases are renewed also while an engine makes no step, because a long step and one that never ends look the same. The
watchdog ends a worker whose engine hangs, and then its leases expire.

A job without a lease stops computing, and this worker writes no outcome for it. Cancellation is a column that each
renewal returns; Redis only makes it faster.
"""

import time
from collections.abc import Callable

import structlog

from headrace.models.engine.protocol import AnyEngine
from headrace.models.engine.requests import FinishReason
from headrace.store.errors import HeadraceError
from headrace.store.periodic import Periodic
from headrace.workers.runs.claim_client import ClaimClient
from headrace.workers.runs.in_flight import InFlightAttempts

log = structlog.get_logger(__name__)


class LeaseKeeper(Periodic):
    """Renews every ``lease_s`` / 3 from its own thread; ``claim_client`` should have its own connection."""

    def __init__(
        self,
        claim_client: ClaimClient,
        in_flight: InFlightAttempts,
        engine: AnyEngine,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim_client = claim_client
        self._in_flight = in_flight
        self._engine = engine
        self._lease_s = lease_s
        self._clock = clock
        self.num_lost = 0
        super().__init__("leases", self._renew_or_drop, lease_s / 3)

    def cancel(self, job_id: str) -> None:
        """Stop a job that its owner has cancelled, if it is in flight here."""
        attempt = self._in_flight.cancel(job_id)
        if attempt is not None and self._engine.cancel(attempt.id, FinishReason.CANCELLED):
            log.info("cancel_passed_on", job_id=job_id)

    def renew_once(self) -> None:
        """Renew all leases once, and act on the answer."""
        epochs = self._in_flight.epochs()
        if not epochs:
            return
        sent_at = self._clock()
        try:
            renewal = self._claim_client.renew(epochs)
        except HeadraceError as error:
            log.warning("leases_not_renewed", reason=error.message, num_jobs=len(epochs))
            return
        self._in_flight.renewed(renewal.renewed, sent_at)
        if locked := renewal.held - renewal.renewed:
            log.warning("leases_not_renewed", reason="another transaction has locked their rows", num_jobs=len(locked))
        for job_id in renewal.cancelled:
            self.cancel(job_id)
        for job_id in epochs.keys() - renewal.held:
            self._lose(job_id, epochs[job_id])

    def drop_expired(self) -> None:
        """Stop every job whose lease must have expired by now."""
        now = self._clock()
        for job_id, epoch in self._in_flight.epochs().items():
            attempt = self._in_flight.get(job_id)
            if attempt is not None and now - self._in_flight.renewed_at(attempt) > self._lease_s:
                self._lose(job_id, epoch)

    def _renew_or_drop(self) -> None:
        try:
            self.renew_once()
        finally:
            self.drop_expired()

    def _lose(self, job_id: str, epoch: int) -> None:
        attempt = self._in_flight.drop(job_id, epoch)
        if attempt is not None:
            self.num_lost += 1
            log.warning("lease_lost", job_id=job_id, epoch=epoch)
            # HANDED_BACK, because CANCELLED would show text that is not certain, as at the end of a job.
            self._engine.cancel(attempt.id, FinishReason.HANDED_BACK)
