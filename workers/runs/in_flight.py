"""The attempts that are in flight in this worker: to compute, to renew and to finish.

An attempt leaves the table when its lease is lost, when it is handed back, or when it has ended. The thread that
computed it then finds it gone and writes nothing. The table knows no database and no engine.

    add ──▶ in flight ──settle──▶ settling ──remove──▶ gone      settling: the outcome is being written
                └── drop, take_rest ──▶ gone                     gone: this worker writes no outcome
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple

from headrace.store.jobs.claims import Claim


class AttemptId(NamedTuple):
    """Names one attempt, in the engine and in the stream: two attempts of a job are never mixed up."""

    job_id: str
    epoch: int


class ChoiceId(NamedTuple):
    """Names one of several choices of an attempt in the engine, where they are the group of the attempt's id."""

    job_id: str
    epoch: int
    choice: int

    @property
    def attempt_id(self) -> AttemptId:
        """The attempt."""
        return AttemptId(self.job_id, self.epoch)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claimed attempt of a job. Times are monotonic, in seconds.

    The lease counts from before the claim was sent, the deadline from when its answer was here: with a slow database
    the lease looks older than it is, and the deadline later, never the other way round. ``answered_at``: when the
    answer of the claim was here.
    """

    claim: Claim
    claimed_at: float
    deadline: float | None
    answered_at: float

    @property
    def job_id(self) -> str:
        """The job."""
        return self.claim.job_id

    @property
    def epoch(self) -> int:
        """The fencing epoch."""
        return self.claim.epoch

    @property
    def id(self) -> AttemptId:
        """The request id in the engine."""
        return AttemptId(self.claim.job_id, self.claim.epoch)


class InFlightAttempts:
    """A thread-safe table with one attempt for each job: a new epoch replaces the old one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts: dict[str, Attempt] = {}
        self._renewed_at: dict[str, float] = {}
        self._settling: set[str] = set()
        self._cancelled: set[str] = set()
        self._closed = False
        self._changed = threading.Condition(self._lock)

    def __len__(self) -> int:
        with self._lock:
            return len(self._attempts)

    def add(self, attempt: Attempt) -> bool:
        """Add an attempt; False if the worker is handing back and takes no more."""
        with self._lock:
            if self._closed:
                return False
            self._attempts[attempt.job_id] = attempt
            self._renewed_at[attempt.job_id] = attempt.claimed_at
            self._settling.discard(attempt.job_id)
            self._cancelled.discard(attempt.job_id)
            return True

    def get(self, job_id: str) -> Attempt | None:
        """Return the attempt of a job, if it is in flight."""
        with self._lock:
            return self._attempts.get(job_id)

    def cancel(self, job_id: str) -> Attempt | None:
        """Note that the attempt of a job is cancelled, and return it; None if it is not in flight."""
        with self._lock:
            attempt = self._attempts.get(job_id)
            if attempt is not None:
                self._cancelled.add(job_id)
            return attempt

    def is_cancelled(self, attempt: Attempt) -> bool:
        """Return True for an attempt in the table that is cancelled."""
        with self._lock:
            return attempt.job_id in self._cancelled and self._attempts.get(attempt.job_id) is attempt

    def all(self) -> list[Attempt]:
        """Return every attempt in flight."""
        with self._lock:
            return list(self._attempts.values())

    def owns(self, attempt: Attempt) -> bool:
        """Return True while ``attempt`` is in the table."""
        with self._lock:
            return self._attempts.get(attempt.job_id) is attempt

    def settle(self, attempt: Attempt) -> bool:
        """Note that the outcome is about to be written; False if the attempt is gone."""
        with self._lock:
            if self._attempts.get(attempt.job_id) is not attempt:
                return False
            self._settling.add(attempt.job_id)
            return True

    def remove(self, attempt: Attempt) -> None:
        """Remove an attempt that has ended, unless a newer one has replaced it."""
        with self._lock:
            if self._attempts.get(attempt.job_id) is attempt:
                self._forget(attempt.job_id)

    def drop(self, job_id: str, epoch: int) -> Attempt | None:
        """Remove and return an attempt that has lost its lease; None if it is settling, gone or of another epoch."""
        with self._lock:
            attempt = self._attempts.get(job_id)
            if attempt is None or attempt.epoch != epoch or job_id in self._settling:
                return None
            self._forget(job_id)
            return attempt

    def epochs(self) -> dict[str, int]:
        """Return the epoch of each job in flight, as a renewal names them."""
        with self._lock:
            return {job_id: attempt.epoch for job_id, attempt in self._attempts.items()}

    def renewed(self, job_ids: frozenset[str], at: float) -> None:
        """Note that these leases were renewed by a statement sent at ``at``."""
        with self._lock:
            for job_id in job_ids & self._attempts.keys():
                self._renewed_at[job_id] = max(self._renewed_at[job_id], at)

    def renewed_at(self, attempt: Attempt) -> float:
        """Return when the attempt's lease was last known to be renewed."""
        with self._lock:
            return self._renewed_at.get(attempt.job_id, attempt.claimed_at)

    @property
    def is_closed(self) -> bool:
        """True once the worker is handing back."""
        with self._lock:
            return self._closed

    def close(self) -> list[Attempt]:
        """Take no more attempts, and return those in flight."""
        with self._lock:
            self._closed = True
            return list(self._attempts.values())

    def take_rest(self) -> list[Attempt]:
        """Remove and return every attempt that is not settling."""
        with self._lock:
            taken = [attempt for job_id, attempt in self._attempts.items() if job_id not in self._settling]
            for attempt in taken:
                self._forget(attempt.job_id)
            return taken

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no attempt is in flight; False after ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._attempts, timeout_s)

    def _forget(self, job_id: str) -> None:
        del self._attempts[job_id]
        self._renewed_at.pop(job_id, None)
        self._settling.discard(job_id)
        self._cancelled.discard(job_id)
        self._changed.notify_all()
