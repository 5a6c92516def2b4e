"""Rates from jobs that have ended: those of a simulated worker are found again."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from headrace.features.planner.arrivals import Arrival
from headrace.features.planner.fitting import arrivals_of, fitted
from headrace.features.planner.job_history import EndedJob
from headrace.features.planner.rates import Rates
from headrace.features.planner.simulation import Capacity, Run, simulate
from headrace.store.errors import InvalidRequest

BEGAN = datetime(2026, 11, 28, tzinfo=UTC)
RATES = Rates(decode_tokens_per_s={1: 20, 4: 60}, prefill_tokens_per_s=2000, overhead_s=0.1, slots=4, kv_tokens=16_384)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def ended(run: Run) -> list[EndedJob]:
    """The jobs of a simulation with one worker, as they would be stored."""
    return [
        EndedJob(
            tenant_id=job.arrival.tenant,
            class_rank=job.arrival.class_rank,
            created_at=at(job.arrival.at_s),
            deadline_at=at(job.arrival.at_s + 3600),
            started_at=at(job.started_at),
            ended_at=at(job.ended_at),
            worker="w",
            is_typical=True,
            input_tokens=job.arrival.prompt_tokens,
            cost_tokens=job.cost_tokens,
            output_tokens=job.arrival.output_tokens,
            first_token_s=job.first_token_at - job.arrival.at_s,
        )
        for job in run.jobs
    ]


@pytest.fixture(scope="module")
def jobs() -> list[EndedJob]:
    """Some jobs that ran alone, and then a burst."""
    alone = [Arrival(10.0 * number, 300, 60, 80) for number in range(5)]
    burst = [Arrival(60.0, 300, 60, 80)] * 40
    return ended(simulate([*alone, *burst], RATES, Capacity("", fixed=1)))


def test_the_speeds_of_the_worker_are_found_again(jobs: Sequence[EndedJob]) -> None:
    found = fitted(jobs, "tiny@1", cold_start_s=7.0)
    assert (found.name, found.cold_start_s, found.slots) == ("tiny@1", 7.0, 4)
    assert found.decode_tokens_per_s[1] == pytest.approx(20, rel=0.05)
    assert found.decode_tokens_per_s[4] == pytest.approx(60, rel=0.15)
    again = simulate(arrivals_of(jobs), found, Capacity("", fixed=1))
    assert again.ended_at == pytest.approx((jobs[-1].ended_at - BEGAN).total_seconds(), rel=0.1)


def test_the_overhead_is_told_from_the_prompts_if_their_lengths_differ() -> None:
    arrivals = [Arrival(10.0 * number, 50 * (1 + number % 10), 60, 80) for number in range(20)]
    found = fitted(ended(simulate(arrivals, RATES, Capacity("", fixed=1))), "tiny@1", cold_start_s=7.0)
    assert found.prefill_tokens_per_s == pytest.approx(2000, rel=0.1)
    assert found.overhead_s == pytest.approx(0.1, abs=0.03)


def test_other_workers_do_not_count_as_company(jobs: Sequence[EndedJob]) -> None:
    twins = [replace(one, worker="other") for one in jobs]
    found = fitted([*jobs, *twins], "tiny@1", cold_start_s=7.0, slots=9)
    assert found.decode_tokens_per_s == fitted(jobs, "tiny@1", cold_start_s=7.0).decode_tokens_per_s
    assert found.slots == 9
    beside_one = [*jobs, *(replace(one, worker="second") for one in jobs[:5])]
    assert fitted(beside_one, "tiny@1", cold_start_s=7.0).slots == 4, "the most that one of them ran at a time"
    # Many workers with a job each, at the time of the burst: each of these jobs runs alone.
    single = replace(jobs[0], created_at=at(65), started_at=at(65), ended_at=at(65) + (jobs[0].ended_at - BEGAN))
    beside = [*jobs, *(replace(single, worker=f"w{number}") for number in range(200))]
    assert fitted(beside, "tiny@1", cold_start_s=7.0).decode_tokens_per_s == pytest.approx(
        fitted(jobs, "tiny@1", cold_start_s=7.0).decode_tokens_per_s, rel=0.1
    )


def test_the_trace_has_what_was_stored(jobs: Sequence[EndedJob]) -> None:
    late = replace(jobs[0], created_at=at(5.0), deadline_at=None, cost_tokens=340, output_tokens=0)
    first, second = arrivals_of([late, replace(jobs[0], tenant_id="acme")])
    assert first == Arrival(0.0, 300, 60, 80, tenant="acme", deadline_s=3600.0)
    assert second == Arrival(5.0, 300, 1, 40)


@pytest.mark.parametrize(
    "changes",
    [
        {"is_typical": False},
        {"output_tokens": 7},
        {"first_token_s": None},
        {"started_at": None},
        {"ended_at": None},
        {"worker": None},
    ],
)
def test_jobs_whose_times_say_nothing_are_refused(jobs: Sequence[EndedJob], changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="give --rates"):
        fitted([replace(one, **changes) for one in jobs], "tiny@1", cold_start_s=7.0)
    with pytest.raises(InvalidRequest, match="no job"):
        arrivals_of([])
