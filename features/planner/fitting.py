"""Trace and rates from jobs that have ended: the product's own history. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from statistics import linear_regression, median

from headrace.features.planner.arrivals import Arrival, in_order
from headrace.features.planner.job_history import EndedJob
from headrace.features.planner.rates import Rates
from headrace.store.errors import InvalidRequest

_FEWEST = 3
"""Jobs that must have run beside so many others before a speed is believed."""

_LONG_PROMPT = 256
"""Shorter prompts say nothing of the speed of prefill: a step takes as long without them."""

_FEWEST_OUTPUT = 8


@dataclass(frozen=True, slots=True)
class _Decoding:
    """The times in which a job generated, in Unix seconds, and its tokens after the first one."""

    worker: str
    started_at: float
    first_token_at: float
    ended_at: float
    tokens: int
    prompt_tokens: int


def arrivals_of(jobs: Sequence[EndedJob]) -> list[Arrival]:
    """Return the jobs as a trace. Raises InvalidRequest without jobs."""
    if not jobs:
        raise InvalidRequest("no job has ended in that time: give a longer --within, or a trace file")
    return in_order(
        [
            Arrival(
                at_s=one.created_at.timestamp(),
                prompt_tokens=one.input_tokens,
                output_tokens=max(1, one.output_tokens),
                max_tokens=max(1, one.output_tokens, one.cost_tokens - one.input_tokens),
                class_rank=one.class_rank,
                tenant=one.tenant_id,
                deadline_s=None
                if one.deadline_at is None
                else max(0.0, (one.deadline_at - one.created_at).total_seconds()),
            )
            for one in jobs
        ]
    )


def fitted(jobs: Sequence[EndedJob], name: str, *, cold_start_s: float, slots: int | None = None) -> Rates:
    """Return the rates that the jobs show. ``slots``: of a worker; None: the most jobs that one ran at a time.

    Raises InvalidRequest if too few jobs of this kind have ended.
    """
    found = [one for job in jobs if (one := _decoding(job)) is not None]
    running = {worker: _Running([one for one in found if one.worker == worker]) for worker in {o.worker for o in found}}
    decode = _decode_rates(found, running, inf)
    if not decode:
        raise InvalidRequest(
            f"the history of {name} has too few jobs that generated {_FEWEST_OUTPUT} tokens or more in their first "
            "attempt: give --rates"
        )
    first = Rates(name=name, decode_tokens_per_s=decode, cold_start_s=cold_start_s)
    prefill, overhead_s = _until_first_token(found, running, first)
    return first.model_copy(
        update={
            "decode_tokens_per_s": _decode_rates(found, running, prefill),
            "prefill_tokens_per_s": prefill,
            "overhead_s": overhead_s,
            "slots": slots or max(one.most for one in running.values()),
        }
    )


def _decode_rates(
    found: Sequence[_Decoding], running: Mapping[str, "_Running"], prefill_tokens_per_s: float
) -> dict[int, float]:
    """Return the tokens a second of all sequences together, by their number, without the time of others' prompts."""
    by_number: dict[int, list[float]] = defaultdict(list)
    for one in found:
        beside = running[one.worker]
        number = max(1, round(beside.mean(one.first_token_at, one.ended_at)))
        seconds = one.ended_at - one.first_token_at
        stalled_s = beside.prompt_tokens(one.first_token_at, one.ended_at) / prefill_tokens_per_s
        by_number[number].append(one.tokens / max(seconds - stalled_s, seconds / 2))
    return {number: number * median(speeds) for number, speeds in by_number.items() if len(speeds) >= _FEWEST}


def _until_first_token(
    found: Sequence[_Decoding], running: Mapping[str, "_Running"], rates: Rates
) -> tuple[float, float]:
    """Return the prompt tokens a second, and the seconds of a job that neither its prompt nor the steps explain.

    A first token comes with a step of its own. Beside others its job waits for half of the step before on the average.
    The rest is a line over the length of the prompt if lengths differ; else all of it is the prompt's, if that is long.
    """
    delays = []
    for one in found:
        number = max(1, round(running[one.worker].mean(one.started_at, one.ended_at)))
        steps_s = (1.0 if number == 1 else 1.5) * rates.decode_step_s(number)
        delays.append((one.prompt_tokens, max(0.0, one.first_token_at - one.started_at - steps_s)))
    lengths = [length for length, _ in delays]
    if max(lengths) >= max(_LONG_PROMPT, 2 * min(lengths)):
        slope, intercept = linear_regression(lengths, [delay for _, delay in delays])
        if slope > 0 and intercept >= 0:
            return 1 / slope, intercept
    speeds = [length / delay for length, delay in delays if length >= _LONG_PROMPT and delay > 0]
    if len(speeds) >= _FEWEST:
        return median(speeds), 0.0
    return rates.prefill_tokens_per_s, median(delay for _, delay in delays)


def _decoding(job: EndedJob) -> _Decoding | None:
    """Return when the job generated; None if its times do not say how fast a worker is."""
    if not job.is_typical or job.started_at is None or job.ended_at is None or job.worker is None:
        return None
    if job.first_token_s is None or job.output_tokens < _FEWEST_OUTPUT:
        return None
    first_token_at = job.created_at.timestamp() + job.first_token_s
    started_at, ended_at = job.started_at.timestamp(), job.ended_at.timestamp()
    if not started_at < first_token_at < ended_at:
        return None
    return _Decoding(job.worker, started_at, first_token_at, ended_at, job.output_tokens - 1, job.input_tokens)


class _Running:
    """How many jobs of one worker generate at each time."""

    def __init__(self, jobs: Sequence[_Decoding]) -> None:
        changes = sorted([(one.first_token_at, 1) for one in jobs] + [(one.ended_at, -1) for one in jobs])
        self._times = [at for at, _ in changes]
        self._numbers = list(accumulate(change for _, change in changes))
        areas = (
            number * (end - begin) for number, (begin, end) in zip(self._numbers, pairwise(self._times), strict=False)
        )
        self._areas = list(accumulate(areas, initial=0.0))

        firsts = sorted((one.first_token_at, one.prompt_tokens) for one in jobs)
        self._first_times = [at for at, _ in firsts]
        self._prompts = list(accumulate((tokens for _, tokens in firsts), initial=0))

    @property
    def most(self) -> int:
        """The most of them at a time."""
        return max(self._numbers)

    def mean(self, begin: float, end: float) -> float:
        """Return the mean number between two times."""
        return (self._area(end) - self._area(begin)) / (end - begin)

    def prompt_tokens(self, begin: float, end: float) -> int:
        """Return the tokens of the prompts that were computed after one time, up to another."""
        return (
            self._prompts[bisect_right(self._first_times, end)] - self._prompts[bisect_right(self._first_times, begin)]
        )

    def _area(self, at: float) -> float:
        index = bisect_right(self._times, at) - 1
        if index < 0:
            return 0.0
        return self._areas[index] + self._numbers[index] * (at - self._times[index])
