"""Finds the checkpoint from which an attempt continues: the output of earlier attempts, as far as it is stored.

    epoch 1                          ──▶ empty, without a look-up
    the last attempt was handed back ──▶ its checkpoint in Postgres, which came with the claim
    the last attempt was lost        ──▶ its stream in Redis, which is sealed first
    it was of another model version  ──▶ empty; its stream is sealed all the same
    Redis does not answer in time    ──▶ the older checkpoint in Postgres; the start frame informs readers

The engine checks later whether the tokens make the texts.
"""

import time
from collections.abc import Callable

import structlog

from headrace.store.errors import CannotOpen, Unavailable
from headrace.store.jobs.claims import Claim
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.fencing import FencedLogs, newest, recover
from headrace.workers.runs.stream_publisher import ExponentialBackoff

log = structlog.get_logger(__name__)

SEAL_TIMEOUT_S = 0.75
"""Time limit for an answer of Redis: a claimed job must not wait longer for a checkpoint that may not exist."""


class CheckpointRecovery:
    """Called from many threads at once."""

    def __init__(self, logs: FencedLogs, clock: Callable[[], float] = time.monotonic) -> None:
        self._logs = logs
        self._clock = clock
        self._backoff = ExponentialBackoff(1.0, 5.0, clock)

    def checkpoint(self, claim: Claim, job_age_s: float) -> Checkpoint:
        """Return the checkpoint from which the attempt continues; an empty one if it starts anew.

        ``job_age_s``: the time since the job was accepted.
        """
        stored = claim.checkpoint
        if claim.epoch == 1 or (stored is not None and stored.epoch == claim.epoch - 1):
            return stored or Checkpoint()
        found = newest(stored, self._recovered(claim, job_age_s))
        if found.epoch <= claim.restarts_after:
            found = Checkpoint()
        log.info("attempt_resumes", num_deltas=found.num_deltas)
        return found

    def _recovered(self, claim: Claim, job_age_s: float) -> Checkpoint | None:
        if self._backoff.is_open:
            return None
        asked_at = self._clock()
        try:
            frames = self._logs.fence(claim.job_id, claim.epoch)
        except CannotOpen as error:
            log.error("log_not_opened", error=error.message)
            return None
        except Unavailable as error:
            self._backoff.failed()
            log.warning("log_not_sealed", error=error.message)
            return None
        self._backoff.succeeded()
        # The age when the log was read: Redis may have answered late.
        return recover(frames, job_age_s + self._clock() - asked_at)
