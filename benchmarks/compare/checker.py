"""Judges a run by its records: the client's log, the tasks' log, and the jobs left in the broker. Pure.

It asks no process of the run. *Lost*: accepted, no end was reported, and no store still holds it. *Stuck*: the same,
but it is still kept somewhere. *Ran twice*: completed more than once. *Ended twice*: more than one end was
recorded as the job's.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.compare.client import ClientLog


@dataclass(frozen=True)
class Evidence:
    """What the contestant's own places hold after the quiet period.

    ``ends``: how often each job was worked on to its end. ``recorded``: how often an end of it was recorded.
    ``kept``: jobs that are still held for later.
    """

    ends: Mapping[str, int]
    recorded: Mapping[str, int]
    kept: Collection[str]


@dataclass(frozen=True)
class Verdict:
    """One contestant's row."""

    accepted: int
    refused: int
    succeeded: int
    failed: int
    lost: int
    lost_though_run: int
    stuck: int
    ran_twice: int
    duplicate_terminal: int
    to_end_s: Mapping[str, float]


def judge(log: ClientLog, evidence: Evidence) -> Verdict:
    """Return what became of every accepted job."""
    states = Counter(told.state for told in log.jobs.values())
    unended = {job_id for job_id, told in log.jobs.items() if told.state is None}
    lost = unended - set(evidence.kept)
    times = sorted(told.ended_at - told.accepted_at for told in log.jobs.values() if told.ended_at is not None)
    return Verdict(
        accepted=len(log.jobs),
        refused=log.refused,
        succeeded=states["succeeded"],
        failed=states["failed"],
        lost=len(lost),
        lost_though_run=sum(evidence.ends.get(job_id, 0) > 0 for job_id in lost),
        stuck=len(unended - lost),
        ran_twice=sum(evidence.ends.get(job_id, 0) > 1 for job_id in log.jobs),
        duplicate_terminal=sum(evidence.recorded.get(job_id, 0) > 1 for job_id in log.jobs),
        to_end_s={name: _quantile(times, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))},
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0
