"""Jobs in simulated time: what waits follow from known speeds, and that the product's decisions are asked."""

from dataclasses import replace

import pytest

from headrace.features.planner import simulation
from headrace.features.planner.arrivals import Arrival
from headrace.features.planner.rates import Rates
from headrace.features.planner.simulation import Capacity, QueueRules, Run, grain_of, simulate, too_long
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.scheduling.autoscale import ScaleLimits

# A step takes 50 ms with one sequence and with four.
RATES = Rates(name="fake@1", decode_tokens_per_s={1: 20, 4: 80}, cold_start_s=6, overhead_s=0, slots=4, kv_tokens=4096)
LIMITS = ScaleLimits(0, 3, wait_s=5, cool_down_s=10, zero_after_s=20)
BATCH, INTERACTIVE = CLASS_RANKS[ServiceClass.BATCH], CLASS_RANKS[ServiceClass.INTERACTIVE]


def burst(num_jobs: int, **changes: object) -> list[Arrival]:
    one = Arrival(0.0, prompt_tokens=10, output_tokens=20, max_tokens=20)
    return [replace(one, **changes) for _ in range(num_jobs)]


def waits(run: Run) -> list[float]:
    return sorted(job.started_at - job.arrival.at_s for job in run.jobs if job.started_at is not None)


def test_a_fixed_worker_takes_four_jobs_at_a_time() -> None:
    run = simulate(burst(12), RATES, Capacity("1 fixed", fixed=1))
    # A job of 20 tokens is 20 steps of 50 ms; until its first job a worker takes one at a time.
    assert waits(run)[0] == 0
    assert waits(run)[-1] == pytest.approx(2.0, abs=0.3)
    assert run.ended_at == pytest.approx(3.1, abs=0.3)
    assert run.worker_s == run.ended_at
    assert all(job.first_token_at - job.started_at == pytest.approx(0.05, abs=0.051) for job in run.jobs)


def test_more_workers_share_a_burst_and_prompts_take_time() -> None:
    alone, shared = (simulate(burst(24), RATES, Capacity("", fixed=number)) for number in (1, 3))
    assert waits(shared)[-1] < 0.5 * waits(alone)[-1]
    slow = RATES.model_copy(update={"prefill_tokens_per_s": 10.0})
    prompts = simulate(burst(4), slow, Capacity("", fixed=1))
    assert max(job.first_token_at or 0.0 for job in prompts.jobs) == pytest.approx(4.0, abs=0.5)


def test_from_no_worker_the_first_job_waits_for_a_cold_start_and_the_workers_leave_at_the_end() -> None:
    last = Arrival(120.0, 10, 20, 20)
    run = simulate([*burst(200), last], RATES, Capacity("0..3 scaled", limits=LIMITS))
    assert waits(run)[0] >= RATES.cold_start_s
    # The number comes from the product's decision, with its reason.
    numbers = [number for _, number, _ in run.reasons]
    assert (numbers[0], max(numbers)) == (1, 3)
    assert all("wait" in reason for _, number, reason in run.reasons[: numbers.index(3) + 1])
    silent = [number for at_s, number in run.workers if 60 < at_s < 120]
    assert silent[-1] == 0
    assert run.jobs[-1].started_at - last.at_s == pytest.approx(RATES.cold_start_s, abs=2.1)
    assert run.worker_s < 3 * run.ended_at


def test_the_least_workers_are_ready_when_the_first_job_comes() -> None:
    run = simulate(burst(2), RATES, Capacity("1..3 scaled", limits=replace(LIMITS, least=1)))
    assert waits(run)[-1] < 0.2


def test_a_better_class_goes_first_and_the_batch_class_leaves_room() -> None:
    arrivals = [*burst(40, class_rank=BATCH), *(replace(one, at_s=1.0) for one in burst(2, class_rank=INTERACTIVE))]
    run = simulate(arrivals, RATES, Capacity("", fixed=1))
    by_class = {rank: [one for one in run.jobs if one.arrival.class_rank == rank] for rank in (BATCH, INTERACTIVE)}
    assert max((one.started_at or 0.0) - 1.0 for one in by_class[INTERACTIVE]) < 1.2
    assert max(one.started_at or 0.0 for one in by_class[BATCH]) > 8


def test_the_settings_of_the_queue_decide_when_the_batch_class_runs() -> None:
    waiting = [Arrival(0.0, 10, 20, 20, class_rank=BATCH), *burst(80)]

    def batch_starts(ageing_s: float) -> float:
        run = simulate(waiting, RATES, Capacity("", fixed=1), QueueRules(ready_window=4, ageing_s=ageing_s))
        (job,) = [one for one in run.jobs if one.arrival.class_rank == BATCH]
        return job.started_at or 0.0

    assert batch_starts(1.0) < 0.5 * batch_starts(3600.0)
    one_by_one, beside = (
        simulate(burst(12, class_rank=BATCH), RATES, Capacity("", fixed=1), QueueRules(batch_share=share))
        for share in (0.25, 0.75)
    )
    assert one_by_one.ended_at == pytest.approx(12 * 1.0, rel=0.2)
    assert beside.ended_at < 0.5 * one_by_one.ended_at


def test_a_better_class_overtakes_a_long_prompt_in_the_engine() -> None:
    rates = RATES.model_copy(update={"prefill_tokens_per_s": 1000.0, "step_tokens": 256})
    long = Arrival(5.0, prompt_tokens=3000, output_tokens=20, max_tokens=20, class_rank=BATCH)
    quick = Arrival(5.5, prompt_tokens=100, output_tokens=20, max_tokens=20, class_rank=INTERACTIVE)
    run = simulate([*burst(4), long, quick], rates, Capacity("", fixed=1))
    *_, background, overtaking = run.jobs
    assert (overtaking.first_token_at or 0.0) < 6.2
    assert (background.first_token_at or 0.0) > 8.0


def test_tenants_share_what_does_not_fit_the_ready_window() -> None:
    arrivals = [*burst(60, tenant="loud", max_tokens=2000), *burst(4, tenant="quiet", max_tokens=2000)]
    run = simulate(arrivals, RATES, Capacity("", fixed=1), QueueRules(ready_window=4))
    quiet = [job.started_at or 0.0 for job in run.jobs if job.arrival.tenant == "quiet"]
    assert max(quiet) < 0.5 * max(waits(run))


def test_a_job_that_cannot_end_in_time_is_late_and_keeps_no_slot() -> None:
    run = simulate(burst(40, deadline_s=3.0), RATES, Capacity("", fixed=1))
    late = [job for job in run.jobs if job.is_late]
    assert 20 <= len(late) <= 32
    assert all(job.ended_at <= 3.0 + 2.1 for job in run.jobs)


def test_a_coarser_grain_gives_nearly_the_same_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = burst(40, output_tokens=80, max_tokens=80, prompt_tokens=80)
    exact = simulate(arrivals, RATES, Capacity("", fixed=1))
    monkeypatch.setattr(simulation, "MOST_TOKENS", 800)
    coarse = simulate(arrivals, RATES, Capacity("", fixed=1))
    assert (exact.grain, coarse.grain) == (1, 4)
    assert waits(coarse)[-1] == pytest.approx(waits(exact)[-1], rel=0.05)
    assert grain_of(burst(2000, output_tokens=9), RATES) == 1, "a short output keeps its steps"


def test_a_job_that_no_pool_can_hold_is_found() -> None:
    arrivals = [*burst(3), Arrival(0.0, 4000, 50, 200)]
    assert too_long(arrivals, RATES) is arrivals[-1]
    assert too_long(arrivals[:3], RATES) is None


@pytest.mark.parametrize(
    ("num_running", "seconds"), [(1, 0.05), (2, 0.05), (4, 0.05), (8, 0.09), (12, 0.13), (24, 0.26)]
)
def test_a_step_between_measured_numbers_is_interpolated(num_running: int, seconds: float) -> None:
    rates = RATES.model_copy(update={"decode_tokens_per_s": {2: 40.0, 4: 80.0, 12: 12 / 0.13}})
    assert rates.decode_step_s(num_running) == pytest.approx(seconds)
