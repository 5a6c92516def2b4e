"""Pairs of jobs, one of the candidate and one of the stable version, and the values that the judge bets on.

Both jobs of a pair were accepted in the same window of time, in the same service class and with prompts of similar
length. The stable job is of the same tenant if the tenant has one (an *own* pair), else of another one (*foreign*).
The stable jobs that are left are paired among themselves, two tenants at a time: these *placebo* pairs show how far
tenants differ on one and the same version.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from headrace.features.rollouts.bounds import Bounds

NUM_CELLS = 64
"""Tenants are counted in so many groups, by a digest of their id, so that evidence has a bounded size."""

_NOT_OF_THE_VERSION = frozenset({"cancelled", "deadline_exceeded", "invalid_payload", "context_length_exceeded"})
"""Error codes of jobs that say nothing about the version. Policy blocks and stuck grammars have their own checks."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What is known of a job without its contents. Times are in seconds, None if they are not known.

    ``first_token_s`` counts from the job's start on a worker, ``token_s`` is the time of one output token.
    ``disagreement``: in shadow mode, the share of the answer that differs from the stable version's.
    """

    tenant_id: str
    class_rank: int = 1
    input_tokens: int = 0
    has_ended: bool = True
    has_succeeded: bool = True
    error_code: str | None = None
    first_token_s: float | None = None
    token_s: float | None = None
    output_tokens: int | None = None
    disagreement: float | None = None

    @property
    def stratum(self) -> tuple[int, int]:
        """The service class, and the length of the prompt in powers of two."""
        return self.class_rank, self.input_tokens.bit_length()

    @property
    def cell(self) -> int:
        """The group of tenants that it is counted in."""
        return crc32(self.tenant_id.encode()) % NUM_CELLS


class JobPair(NamedTuple):
    """Two jobs to compare. In a placebo pair both are of the stable version."""

    candidate: JobOutcome
    stable: JobOutcome


@dataclass(frozen=True, slots=True)
class PairedJobs:
    """The pairs of one window."""

    own: Sequence[JobPair] = ()
    foreign: Sequence[JobPair] = ()
    placebo: Sequence[JobPair] = ()


def pair_up(candidate: Iterable[JobOutcome], stable: Iterable[JobOutcome]) -> PairedJobs:
    """Return the pairs; each job is in one pair at most. The order of the jobs must not depend on their outcomes."""
    free: defaultdict[tuple[int, int], defaultdict[str, deque[JobOutcome]]] = defaultdict(lambda: defaultdict(deque))
    for job in stable:
        free[job.stratum][job.tenant_id].append(job)
    own, strangers = [], []
    for job in candidate:
        mates = free[job.stratum][job.tenant_id]
        if mates:
            own.append(JobPair(job, mates.popleft()))
        else:
            strangers.append(job)
    # Of other tenants in turn, so that one large tenant is not the measure of all.
    lines = {stratum: _in_turn(by_tenant.values()) for stratum, by_tenant in free.items()}
    foreign = [JobPair(job, lines[job.stratum].pop()) for job in strangers if lines[job.stratum]]
    placebo = [
        JobPair(one, two)
        for line in lines.values()
        for one, two in zip(line[::2], line[1::2], strict=False)
        if one.tenant_id != two.tenant_id
    ]
    return PairedJobs(own, foreign, placebo)


def _in_turn(lists: Iterable[Sequence[JobOutcome]]) -> list[JobOutcome]:
    """Return the jobs of all lists: the first of each list, the second of each list, and so on, reversed."""
    lists = list(lists)
    rounds = max(map(len, lists), default=0)
    return [jobs[turn] for turn in range(rounds) for jobs in lists if turn < len(jobs)][::-1]


@dataclass(frozen=True, slots=True)
class Measure:
    """A property of jobs that the judge compares. ``read`` returns None for a job that does not have it.

    A share is compared by its difference. Of any other quantity only the order within a pair counts, so outliers
    have no weight; ``less_is_worse`` turns it round.
    """

    read: Callable[[JobOutcome], float | None]
    is_share: bool = True
    less_is_worse: bool = False

    def compare(self, pair: JobPair, bound: float) -> float | None:
        """Return the value to bet on, in [-1, 1]; positive if the candidate is worse.

        The mean is at most ``margin(bound)`` for a candidate within the bound.
        """
        candidate, stable = self.read(pair.candidate), self.read(pair.stable)
        if candidate is None or stable is None:
            return None
        if self.is_share:
            # Few different values, so that a tally is small. Rounded down: in favour of the candidate.
            return math.floor((candidate - stable) * 10) / 10
        larger, smaller = (stable, candidate) if self.less_is_worse else (candidate, stable)
        return 1.0 if larger > bound * smaller else -1.0

    def margin(self, bound: float) -> float:
        """Return the largest mean of ``compare`` that the bound allows."""
        return bound if self.is_share else 0.0


def _has_code(*codes: str) -> Measure:
    return Measure(lambda job: float(job.error_code in codes) if job.has_ended else None)


def _is_fault(job: JobOutcome) -> float | None:
    if not job.has_ended:
        return None
    elsewhere = {"policy_blocked_output", "grammar_stuck"} | _NOT_OF_THE_VERSION
    return float(job.error_code is not None and job.error_code not in elsewhere)


def _length(job: JobOutcome) -> float | None:
    # One more: an empty answer is short as well.
    return job.output_tokens + 1.0 if job.has_succeeded and job.output_tokens is not None else None


MEASURES: Mapping[str, Measure] = {
    "errors": Measure(_is_fault),
    "invalid_numbers": _has_code("numerical_error"),
    "schema_failures": _has_code("grammar_stuck"),
    "policy_blocks": _has_code("policy_blocked_output"),
    "unfinished": Measure(lambda job: float(not job.has_ended)),
    "first_token": Measure(lambda job: job.first_token_s, is_share=False),
    "token_time": Measure(lambda job: job.token_s, is_share=False),
    "longer_answers": Measure(_length, is_share=False),
    "shorter_answers": Measure(_length, is_share=False, less_is_worse=True),
    "disagreement": Measure(lambda job: job.disagreement),
}
"""The measures by their names, which are those of ``Bounds``."""


def bound_of(bounds: Bounds, name: str) -> float:
    """Return the bound of a measure."""
    return float(getattr(bounds, name))
