"""The service rate of a queue: the jobs and tokens that workers start in a second while jobs wait. Pure functions.

An empty queue measures the arrivals and not the capacity. So only intervals count in which the queue was never empty:
more jobs were queued at the beginning than left during the interval. An interval ends with a start. So a worker that
starts one long job every ten seconds measures 0.1 jobs a second, and not 0 and then 4. All times are Postgres's.
"""

import math
from dataclasses import dataclass

HALF_LIFE_S = 15.0
"""After this time a measurement has half its weight."""

KNOWN_AFTER_S = 1.0
"""There is a rate once jobs have waited for this long in total."""

KNOWN_FOR_S = 60.0
"""A rate is unknown when no job has started for this long: the workers may be gone."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The events of a queue up to the time ``at``: jobs queued before, jobs that left it, and how many of them started.

    It begins at the end of the interval before. Jobs that left without a start were cancelled or expired.
    """

    at: float
    num_before: int
    num_left: int
    started_jobs: int
    started_tokens: int


@dataclass(frozen=True, slots=True)
class Rate:
    """The jobs and tokens that workers start in a second while jobs wait."""

    jobs_per_s: float
    tokens_per_s: float


class RateMeter:
    """The smoothed rate of one queue."""

    def __init__(self, at: float) -> None:
        self._since = at
        self._busy_s = 0.0
        self._jobs = 0.0
        self._tokens = 0.0

    def observe(self, interval: Interval) -> bool:
        """Add an interval; return whether it changed the rate."""
        busy_s = interval.at - self._since
        ran_dry = interval.num_left >= interval.num_before
        is_gap = busy_s > KNOWN_FOR_S
        if ran_dry or is_gap or busy_s <= 0:
            self._since = max(interval.at, self._since)
            return False
        if interval.started_jobs == 0:
            return False
        self._add(busy_s, interval)
        return True

    def _add(self, busy_s: float, interval: Interval) -> None:
        kept = math.exp2(-busy_s / HALF_LIFE_S)
        self._since = interval.at
        self._busy_s = self._busy_s * kept + busy_s
        self._jobs = self._jobs * kept + interval.started_jobs
        self._tokens = self._tokens * kept + interval.started_tokens

    def rate(self, known_after_s: float = KNOWN_AFTER_S) -> Rate | None:
        """Return the rate; None until jobs have waited for so long."""
        if self._busy_s < known_after_s:
            return None
        return Rate(jobs_per_s=self._jobs / self._busy_s, tokens_per_s=self._tokens / self._busy_s)
