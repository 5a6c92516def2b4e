"""The attempts that this worker holds: what is ours to compute, to renew and to finish.

An attempt leaves the table when its lease is lost, when it is handed back or when it has ended; whoever computed it
then finds it gone and writes nothing. The table knows no database and no engine.

    add ──▶ held ──settle──▶ settling ──remove──▶ gone      settling: the outcome is being written
              └── drop, take_rest ──▶ gone                  gone: not ours, its outcome is nobody's
"""

import threading
from dataclasses import dataclass

from store.jobs.claims import Claim


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claimed run of one job. ``key`` names it in the engine, so that two epochs of a job can never be mixed up."""

    claim: Claim
    # Monotonic. The lease counts from before the claim was sent, the job's deadline from when its answer was here: so
    # a slow database makes the one look no later and the other no earlier than it is.
    claimed_at: float
    deadline: float | None

    @property
    def job_id(self) -> str:
        """The job."""
        return self.claim.job_id

    @property
    def epoch(self) -> int:
        """The fencing epoch of this attempt."""
        return self.claim.epoch

    @property
    def key(self) -> str:
        """The request id inside the engine."""
        return f"{self.claim.job_id}/{self.claim.epoch}"


def parse_key(key: str) -> tuple[str, int]:
    """Return job id and epoch of ``Attempt.key``."""
    job_id, _, epoch = key.rpartition("/")
    return job_id, int(epoch)


class HeldJobs:
    """A thread-safe table of attempts, one a job: a new epoch of a job replaces the old one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Attempt] = {}
        self._renewed_at: dict[str, float] = {}
        self._settling: set[str] = set()
        self._closed = False
        self._changed = threading.Condition(self._lock)

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def add(self, attempt: Attempt) -> bool:
        """Hold ``attempt``; False if the worker is handing back and takes nothing any more."""
        with self._lock:
            if self._closed:
                return False
            self._held[attempt.job_id] = attempt
            self._renewed_at[attempt.job_id] = attempt.claimed_at
            self._settling.discard(attempt.job_id)
            return True

    def get(self, job_id: str) -> Attempt | None:
        """Return the attempt of a job that is held."""
        with self._lock:
            return self._held.get(job_id)

    def owns(self, attempt: Attempt) -> bool:
        """True while ``attempt`` is ours."""
        with self._lock:
            return self._held.get(attempt.job_id) is attempt

    def settle(self, attempt: Attempt) -> bool:
        """Announce that the outcome is about to be written; False if the attempt is not ours any more."""
        with self._lock:
            if self._held.get(attempt.job_id) is not attempt:
                return False
            self._settling.add(attempt.job_id)
            return True

    def remove(self, attempt: Attempt) -> None:
        """Forget ``attempt``, if it is still the one that is held."""
        with self._lock:
            if self._held.get(attempt.job_id) is attempt:
                self._forget(attempt.job_id)

    def drop(self, job_id: str, epoch: int) -> Attempt | None:
        """Take away an attempt whose lease is lost and return it; None if it is settling, gone or of another epoch."""
        with self._lock:
            attempt = self._held.get(job_id)
            if attempt is None or attempt.epoch != epoch or job_id in self._settling:
                return None
            self._forget(job_id)
            return attempt

    def epochs(self) -> dict[str, int]:
        """Return what a renewal names: the epoch of every job that is held."""
        with self._lock:
            return {job_id: attempt.epoch for job_id, attempt in self._held.items()}

    def renewed(self, job_ids: frozenset[str], at: float) -> None:
        """Note that these leases were renewed by a statement sent at ``at``."""
        with self._lock:
            for job_id in job_ids & self._held.keys():
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
        """Hold nothing more, and return what is held."""
        with self._lock:
            self._closed = True
            return list(self._held.values())

    def take_rest(self) -> list[Attempt]:
        """Take away every attempt that is not settling."""
        with self._lock:
            taken = [attempt for job_id, attempt in self._held.items() if job_id not in self._settling]
            for attempt in taken:
                self._forget(attempt.job_id)
            return taken

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nothing is held; False if something still is after ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, timeout_s)

    def _forget(self, job_id: str) -> None:
        del self._held[job_id]
        self._renewed_at.pop(job_id, None)
        self._settling.discard(job_id)
        self._changed.notify_all()
