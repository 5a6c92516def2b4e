"""Where an attempt begins: at what an earlier one has emitted, if that is known, or at the beginning.

    epoch 1                          ──▶ the beginning; nothing is asked
    the last attempt was handed back ──▶ what it left in Postgres, which came with the claim
    the last attempt was lost        ──▶ what is in its log in Redis, which is sealed first
    Redis does not answer in time    ──▶ what is in Postgres, though it is older; readers are told

Knows no engine: whether the tokens make the texts is found out there.
"""

import time
from collections.abc import Callable

import structlog

from store.errors import CannotOpen, Unavailable
from store.jobs.claims import Claim
from store.streams.checkpoints import Checkpoint
from store.streams.fencing import SealedLogs, newest, recover
from workers.runs.stream_publisher import Breaker

log = structlog.get_logger(__name__)

SEAL_TIMEOUT_S = 0.75
"""For an answer of Redis: a claimed job must not wait longer for what it may not get."""


class Resumer:
    """Finds checkpoints. Called from many threads at once."""

    def __init__(self, logs: SealedLogs, clock: Callable[[], float] = time.monotonic) -> None:
        self._logs = logs
        self._breaker = Breaker(1.0, 5.0, clock)

    def checkpoint(self, claim: Claim) -> Checkpoint:
        """Return what the attempt goes on from, an empty checkpoint if it begins at the beginning."""
        stored = claim.checkpoint
        if claim.epoch == 1 or (stored is not None and stored.epoch == claim.epoch - 1):
            return stored or Checkpoint()
        found = newest(stored, self._recovered(claim))
        log.info("attempt_resumes", job_id=claim.job_id, epoch=claim.epoch, num_deltas=found.num_deltas)
        return found

    def _recovered(self, claim: Claim) -> Checkpoint | None:
        if self._breaker.is_open:
            return None
        try:
            frames = self._logs.seal(claim.job_id, claim.epoch)
        except CannotOpen as error:
            log.error("log_not_opened", job_id=claim.job_id, epoch=claim.epoch, error=error.message)
            return None
        except Unavailable as error:
            self._breaker.failed()
            log.warning("log_not_sealed", job_id=claim.job_id, epoch=claim.epoch, error=error.message)
            return None
        self._breaker.succeeded()
        return recover(frames)
