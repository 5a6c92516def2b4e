"""The contract of the store in plain Python: what each statement does to a job, with a clock that is only a number.

It knows states, leases, epochs, crashes and suspects, and neither SQL nor who calls. Small enough to be read against
the promises; ``statements`` has the same doors on the real database, and ``Twins`` holds one against the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from headrace.store.jobs.terminal import MAX_CRASHES
from headrace.store.schema.job_states import JobState

LEASE_S = 1000
STALE_S = 3000
GRACE_S = 2000


@dataclass
class Row:
    """One job. Times are the clock's; ``checkpoint`` is how many deltas a hand-back left."""

    max_attempts: int
    deadline_at: int
    state: JobState = JobState.QUEUED
    epoch: int = 0
    attempt: int = 0
    crashes: int = 0
    is_suspect: bool = False
    owner: str | None = None
    lease_at: int | None = None
    announced_at: int | None = None
    created_at: int = 0
    is_cancel_wanted: bool = False
    code: str | None = None
    checkpoint: int = 0


@dataclass(frozen=True)
class Held:
    """What a worker knows of a job it claimed."""

    job_id: str
    epoch: int
    crashes: int
    is_suspect: bool
    emitted: int


@dataclass(frozen=True)
class GivenBack:
    """An attempt that ends without an outcome."""

    job_id: str
    epoch: int
    charge: bool = False
    crashed: bool = False
    cleared: bool = False
    checkpoint: int | None = None


class Store(Protocol):
    """The doors: each takes and returns plain values, so that two of them can be compared."""

    def accept(self, jobs: Mapping[str, tuple[int, int]], *, announce: bool) -> bool: ...
    def claim(self, owner: str, ids: Sequence[str], *, suspects: bool) -> list[Held]: ...
    def renew(self, owner: str, held: Mapping[str, int]) -> tuple[set[str], set[str]]: ...
    def finish(self, job_id: str, epoch: int, state: JobState) -> bool: ...
    def release(self, given: Sequence[GivenBack]) -> set[str]: ...
    def cancel(self, job_id: str) -> bool: ...
    def sweep(self) -> None: ...
    def expire(self) -> set[str]: ...
    def take_waiting(self, n: int) -> set[str]: ...
    def take_stale(self, n: int) -> set[str]: ...
    def candidates(self, n: int, *, suspects: bool, older_than_s: int) -> set[str]: ...
    def forget(self) -> None: ...
    def advance(self, seconds: int) -> None: ...
    def rows(self) -> dict[str, Row]: ...


class Model:
    """A ``Store`` that is nothing but a dictionary."""

    def __init__(self) -> None:
        self.now = 0
        self.jobs: dict[str, Row] = {}

    def rows(self) -> dict[str, Row]:
        """Every job."""
        return self.jobs

    def advance(self, seconds: int) -> None:
        """Let time pass."""
        self.now += seconds

    def accept(self, jobs: Mapping[str, tuple[int, int]], *, announce: bool) -> bool:
        """Store jobs, given as attempts and seconds to the deadline; True if their hints shall go out now."""
        announced = announce and not self.waiting()
        for job_id, (attempts, deadline_s) in jobs.items():
            self.jobs[job_id] = Row(
                attempts,
                self.now + deadline_s,
                announced_at=self.now if announced else None,
                created_at=self.now,
            )
        return announced

    def claim(self, owner: str, ids: Sequence[str], *, suspects: bool) -> list[Held]:
        """Take the queued ones, charging an attempt: suspects or the others."""
        held = []
        for job_id in sorted(set(ids)):
            row = self.jobs[job_id]
            if row.state is JobState.QUEUED and row.deadline_at > self.now and row.is_suspect == suspects:
                row.state, row.owner, row.lease_at = JobState.RUNNING, owner, self.now + LEASE_S
                row.epoch, row.attempt = row.epoch + 1, row.attempt + 1
                held.append(Held(job_id, row.epoch, row.crashes, row.is_suspect, row.checkpoint))
        return held

    def renew(self, owner: str, held: Mapping[str, int]) -> tuple[set[str], set[str]]:
        """Renew the leases; return the jobs still leased, and which of these are cancelled."""
        ours = {job_id for job_id, epoch in held.items() if self.is_ours(job_id, epoch)}
        ours = {job_id for job_id in ours if self.jobs[job_id].owner == owner}
        for job_id in ours:
            self.jobs[job_id].lease_at = self.now + LEASE_S
        return ours, {job_id for job_id in ours if self.jobs[job_id].is_cancel_wanted}

    def finish(self, job_id: str, epoch: int, state: JobState) -> bool:
        """End a job; False if the attempt is not the job's newest, or is over."""
        if not self.is_ours(job_id, epoch):
            return False
        self.end(self.jobs[job_id], state)
        return True

    def release(self, given: Sequence[GivenBack]) -> set[str]:
        """Hand jobs back."""
        ours = [one for one in given if self.is_ours(one.job_id, one.epoch)]
        for one in ours:
            row = self.jobs[one.job_id]
            self.judge(row, charge=one.charge, crashed=one.crashed)
            row.attempt -= not one.charge
            row.crashes += one.crashed
            row.is_suspect = (row.is_suspect or one.crashed) and not one.cleared
            if one.checkpoint is not None and row.state is JobState.QUEUED:
                row.checkpoint = one.checkpoint
        return {one.job_id for one in ours}

    def cancel(self, job_id: str) -> bool:
        """Ask for a job's end; False if it has ended."""
        row = self.jobs[job_id]
        if row.state.is_terminal:
            return False
        row.is_cancel_wanted = True
        if row.state is JobState.QUEUED:
            self.end(row, JobState.CANCELLED)
        return True

    def sweep(self) -> None:
        """Take jobs from workers with an expired lease."""
        for row in self.jobs.values():
            if row.lease_at is not None and row.lease_at < self.now:
                self.judge(row, charge=True, crashed=True)
                row.crashes, row.is_suspect = row.crashes + 1, True

    def expire(self) -> set[str]:
        """End jobs past their deadline, running jobs after a grace period."""
        late = {
            job_id
            for job_id, row in self.jobs.items()
            if (row.state is JobState.QUEUED and row.deadline_at < self.now)
            or (row.state is JobState.RUNNING and row.deadline_at + GRACE_S < self.now)
        }
        for job_id in late:
            self.end(self.jobs[job_id], JobState.EXPIRED, "deadline_exceeded")
        return late

    def waiting(self) -> set[str]:
        """Queued jobs without a hint that may get one."""
        return {
            job_id
            for job_id, row in self.jobs.items()
            if row.state is JobState.QUEUED and row.announced_at is None and not row.is_suspect
        }

    def stale(self) -> set[str]:
        """Queued jobs with a hint so old that it must be lost."""
        return {
            job_id
            for job_id, row in self.jobs.items()
            if row.state is JobState.QUEUED and row.announced_at is not None and row.announced_at + STALE_S < self.now
        }

    def take_waiting(self, n: int) -> set[str]:
        """Announce ``n`` of those that wait."""
        return self.announce(sorted(self.waiting())[:n])

    def take_stale(self, n: int) -> set[str]:
        """Announce ``n`` of the stale ones again."""
        return self.announce(sorted(self.stale())[:n])

    def announce(self, ids: Iterable[str]) -> set[str]:
        """Note that hints go out for these."""
        for job_id in ids:
            self.jobs[job_id].announced_at = self.now
        return set(ids)

    def candidates(self, n: int, *, suspects: bool, older_than_s: int) -> set[str]:
        """Queued jobs that may be claimed without a hint."""
        return set(sorted(self.claimable(suspects=suspects, older_than_s=older_than_s))[:n])

    def claimable(self, *, suspects: bool, older_than_s: int) -> set[str]:
        """All of them."""
        return {
            job_id
            for job_id, row in self.jobs.items()
            if row.state is JobState.QUEUED
            and row.is_suspect == suspects
            and (row.created_at if row.announced_at is None else row.announced_at) + older_than_s <= self.now
        }

    def forget(self) -> None:
        """Let every queued job wait for its announcement again."""
        for row in self.jobs.values():
            if row.state is JobState.QUEUED:
                row.announced_at = None

    def is_ours(self, job_id: str, epoch: int) -> bool:
        """True while this attempt is the job's newest and runs."""
        row = self.jobs[job_id]
        return row.state is JobState.RUNNING and row.epoch == epoch

    def judge(self, row: Row, *, charge: bool, crashed: bool) -> None:
        """Decide the next state of a job after an attempt without an outcome; the caller counts ``crashes``."""
        if row.is_cancel_wanted:
            self.end(row, JobState.CANCELLED)
        elif crashed and row.crashes + 1 >= MAX_CRASHES:
            self.end(row, JobState.FAILED, "poison")
        elif charge and row.attempt >= row.max_attempts:
            self.end(row, JobState.FAILED, "max_attempts_exceeded")
        else:
            row.state, row.owner, row.lease_at, row.announced_at = JobState.QUEUED, None, None, None

    def end(self, row: Row, state: JobState, code: str | None = None) -> None:
        """Move a job to its end."""
        row.state, row.code, row.owner, row.lease_at, row.checkpoint = state, code, None, None, 0


def facts(row: Row) -> Row:
    """What of a row two stores must agree on: times only as far as there are any."""
    queued = row.state is JobState.QUEUED
    return replace(
        row,
        deadline_at=0,
        created_at=0,
        lease_at=None if row.lease_at is None else 0,
        announced_at=0 if queued and row.announced_at is not None else None,
    )
