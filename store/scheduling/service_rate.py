"""How fast a queue is served: a meter of what workers start while jobs wait for them. Pure; the times are Postgres's.

A queue that runs dry says how much came, not how much could have been served. So only intervals count in which it
never was empty: more was queued when the interval began than left during it. An interval ends with a start, so that a
worker that starts one long job every ten seconds measures a tenth of a job a second, not nothing and then four.
"""

import math
from dataclasses import dataclass

HALF_LIFE_S = 15.0
"""After this time a measurement counts half."""

KNOWN_AFTER_S = 1.0
"""So much time with jobs waiting must have been seen before there is a rate."""

KNOWN_FOR_S = 60.0
"""A rate without a start for so long is no longer known: the workers may be gone."""


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened to a queue up to the time ``at``: jobs queued before, jobs that left it, and those of them started.

    It begins where the one before ended. Jobs that left without a start were cancelled or expired.
    """

    at: float
    num_before: int
    num_left: int
    started_jobs: int
    started_tokens: int


@dataclass(frozen=True, slots=True)
class Rate:
    """What workers start in a second while jobs wait for them."""

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
        """Take in an interval; return whether it said something about the rate."""
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

    def rate(self) -> Rate | None:
        """Return the rate; None until enough was seen."""
        if self._busy_s < KNOWN_AFTER_S:
            return None
        return Rate(jobs_per_s=self._jobs / self._busy_s, tokens_per_s=self._tokens / self._busy_s)
