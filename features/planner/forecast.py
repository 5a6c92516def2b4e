"""What a plan says: the figures of each capacity, and one sentence of advice. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from headrace.features.planner.simulation import Run
from headrace.store.scheduling.autoscale import PATIENCE

MEASURED_ERROR = "p95 wait of three live bursts +2 %, +7 % and +9 % (benchmarks/results/2026-11-28-planner.md)"
"""How far the p95 wait of forecasts was from that of live bursts: ``make bench-planner``."""

# Autoscaling must save a tenth against fixed capacity that keeps the waits.
_WORTHWHILE = 1.1


@dataclass(frozen=True, slots=True)
class Forecast:
    """The figures of a capacity. Times are in seconds; None: no job got so far.

    ``patience_p95_s``: as ``wait_p95_s``, with each wait divided by the patience of its class (``PATIENCE``).
    ``late``: jobs that missed their deadline. ``worker_hours``: of all worker processes until the last job has ended,
    also while they start and drain. ``utilisation``: the part of it in which steps ran. ``cost``: in the currency of
    the price, None without one.
    """

    rates: str
    capacity: str
    is_scaled: bool
    num_jobs: int
    late: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    patience_p95_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    most_workers: int
    worker_hours: float
    utilisation: float
    cost: float | None

    def keeps(self, wait_s: float) -> bool:
        """Return whether 95 of 100 jobs start within the wait, and none misses its deadline.

        ``wait_s`` is that of standard jobs; the other classes have their own patience.
        """
        return self.late == 0 and self.patience_p95_s is not None and self.patience_p95_s <= wait_s


def forecast(run: Run, worker_hour: float | None) -> Forecast:
    """Return the figures of a run. ``worker_hour``: the price of a worker for an hour."""
    started = [(job.started_at - job.arrival.at_s, job.arrival) for job in run.jobs if job.started_at is not None]
    waits = [wait for wait, _ in started]
    ttfts = [job.first_token_at - job.arrival.at_s for job in run.jobs if job.first_token_at is not None]
    hours = run.worker_s / 3600
    return Forecast(
        rates=run.rates.name,
        capacity=run.capacity.name,
        is_scaled=run.capacity.limits is not None,
        num_jobs=len(run.jobs),
        late=sum(job.is_late for job in run.jobs),
        wait_p50_s=percentile(waits, 0.5),
        wait_p95_s=percentile(waits, 0.95),
        patience_p95_s=percentile([wait / PATIENCE[arrival.class_rank] for wait, arrival in started], 0.95),
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p95_s=percentile(ttfts, 0.95),
        most_workers=max((number for _, number in run.workers), default=0),
        worker_hours=hours,
        utilisation=run.busy_s / run.worker_s if run.worker_s else 0.0,
        cost=None if worker_hour is None else hours * worker_hour,
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the least value that this share of the values does not exceed; None without values."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)] if values else None


def advice(forecasts: Sequence[Forecast], wait_s: float) -> str:
    """Return one sentence: what to run and why. ``wait_s``: within which 95 of 100 standard jobs should start."""
    keeping = [one for one in forecasts if one.keeps(wait_s)]
    if not keeping:
        best = min(forecasts, key=lambda one: (one.late, one.patience_p95_s or 0.0))
        return (
            f"No capacity that was tried starts 95 % of the jobs within {wait_s:g} s in time for their deadlines: the "
            f"best is {_named(best)} ({_waits(best)}, {best.late:,} late), so allow more workers or a longer wait."
        )
    best = min(keeping, key=lambda one: (one.worker_hours, one.patience_p95_s or 0.0))
    others = [one for one in keeping if one.is_scaled != best.is_scaled]
    other = min(others, key=lambda one: one.worker_hours, default=None)
    if best.is_scaled and other is not None and other.worker_hours < _WORTHWHILE * best.worker_hours:
        best, other = other, best
    kept = f"95 % of the jobs start within the patience of their class ({wait_s:g} s for standard ones)"
    told = f"({_named(best)}): {kept} for {_hours(best)}"
    if best.is_scaled:
        reason = (
            "no fixed number that was tried keeps it"
            if other is None
            else f"{_named(other)} keeps it too, but is busy for only {other.utilisation:.0%} of {_hours(other)}"
        )
        return f"Autoscale {told}; {reason}."
    failing = min((one for one in forecasts if one.is_scaled), key=lambda one: one.patience_p95_s or 0.0, default=None)
    if other is not None:
        reason = f"{_named(other)} needs {_hours(other)}, which is not worth its cold starts"
    elif failing is not None:
        reason = f"{_named(failing)} does not keep it ({_waits(failing)}, {failing.late:,} late)"
    else:
        reason = "it is the least that keeps it"
    return f"Keep fixed capacity {told}; {reason}."


def _named(one: Forecast) -> str:
    return f"{one.capacity} of {one.rates}"


def _waits(one: Forecast) -> str:
    return "no job starts" if one.wait_p95_s is None else f"95 % of the jobs start within {one.wait_p95_s:.1f} s"


def _hours(one: Forecast) -> str:
    return f"{one.worker_hours:.2f} worker-hours"
