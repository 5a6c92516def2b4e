"""A whole plan in figures: what a small trace gives with fixed and with scaled workers, the table and the picture.

The figures are those of the decisions of the product. A change of one of them (order, admission, engine, autoscaling)
may change figures here: look at each one before you write it down anew.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.features.planner.__main__ import main
from headrace.features.planner.arrivals import Arrival, Generated, Shape, generate, read_csv
from headrace.features.planner.drawing import svg
from headrace.features.planner.forecast import Forecast, advice, forecast
from headrace.features.planner.rates import Rates, read_rates
from headrace.features.planner.simulation import Capacity, QueueRules, Run, grain_of, simulate, too_long
from headrace.features.planner.virtual_worker import VirtualRunner, coarse
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.scheduling.autoscale import PATIENCE
from tests.features.planner.test_plan import FIXED
from tests.features.planner.test_plan import RATES as WRITTEN
from tests.features.planner.test_simulation import BATCH, INTERACTIVE, LIMITS, RATES
from tests.refusals import Naming

STANDARD = CLASS_RANKS[ServiceClass.STANDARD]
SLOW = RATES.model_copy(update={"prefill_tokens_per_s": 200.0, "overhead_s": 0.1, "cold_start_s": 3.0})
ARRIVALS = [
    *[Arrival(0.0, 10, 20, 30, BATCH, "night")] * 5,
    *[Arrival(1.0, 10, 20, 30, tenant="loud")] * 4,
    *[Arrival(1.0, 10, 20, 30, tenant="quiet")] * 2,
    Arrival(1.5, 40, 10, 20, INTERACTIVE, "loud"),
    Arrival(1.5, 10, 20, 30, deadline_s=1.0),
    Arrival(12.0, 10, 20, 30, tenant="quiet"),
]
RULES = QueueRules(ready_window=3, ageing_s=60.0, batch_share=0.5)
SCALED = Capacity("0..2 scaled", limits=replace(LIMITS, most=2, wait_s=2.0, cool_down_s=2.0, zero_after_s=4.0))


@pytest.fixture(scope="module")
def fixed() -> Run:
    return simulate(ARRIVALS, SLOW, Capacity("2 fixed", fixed=2), RULES)


@pytest.fixture(scope="module")
def scaled() -> Run:
    return simulate(ARRIVALS, SLOW, SCALED, RULES)


def times(run: Run) -> list[float | None]:
    return [at for job in run.jobs for at in (job.started_at, job.first_token_at, job.ended_at)]


def near(*values: float | None) -> list[Any]:
    return [None if value is None else pytest.approx(value, abs=0.006) for value in values]


def test_the_times_of_fixed_workers(fixed: Run) -> None:
    """Half of the 8 slots are for the batch class: the fifth job of it waits until others have ended."""
    assert times(fixed) == [
        *near(0.1, 0.3, 1.4) * 2,
        *near(0.2, 0.45, 1.5) * 2,
        *near(2.3, 2.55, 3.5),
        *near(1.0, 1.2, 2.45),
        *near(1.0, 1.3, 2.3) * 3,
        *near(1.4, 1.6, 2.6, 1.4, 1.6, 2.8),
        *near(1.5, 1.95, 2.4, 1.5, 1.95, 2.6),
        *near(12.0, 12.2, 13.15),
    ]
    assert [job.is_late for job in fixed.jobs] == [*[False] * 12, True, False]
    assert (fixed.workers, fixed.reasons, fixed.grain) == ([(0, 1), (0, 2)], [], 1)
    assert [fixed.ended_at, fixed.worker_s, fixed.busy_s] == near(13.15, 26.3, 6.95)


def test_the_times_of_scaled_workers(scaled: Run) -> None:
    """The job with a deadline expires while the first worker starts, and the second worker leaves before the end."""
    assert times(scaled) == [
        *near(5.0, 5.2, 6.5, 5.1, 5.6, 6.7, 7.8, 8.0, 9.0, 7.85, 8.1, 9.05, 9.1, 9.3, 10.25),
        *near(5.1, 5.5, 6.55, 6.0, 6.2, 7.3, 6.5, 6.7, 7.8, 6.55, 6.8, 7.85),
        *near(6.7, 6.95, 8.0, 7.3, 7.5, 8.55),
        *near(5.1, 5.5, 6.0),
        *near(None, None, 4.0),
        *near(12.0, 12.2, 13.15),
    ]
    assert [job.is_late for job in scaled.jobs] == [*[False] * 12, True, False]
    assert [(at, number) for at, number in scaled.workers] == [(0, 0), (2.0, 1), (6.0, 2), (12.0, 1)]
    assert [(at, number) for at, number, _ in scaled.reasons] == [(2.0, 1), (6.0, 2), (10.0, 1)]
    assert [scaled.ended_at, scaled.worker_s, scaled.busy_s] == near(13.15, 15.15, 6.05)


def test_the_forecast_counts_each_wait_by_the_patience_of_its_class(fixed: Run, scaled: Run) -> None:
    found = forecast(scaled, 7200.0)
    waits = sorted(
        (job.started_at - job.arrival.at_s) / PATIENCE[job.arrival.class_rank]
        for job in scaled.jobs
        if job.started_at is not None
    )
    assert found == Forecast(
        rates="fake@1",
        capacity="0..2 scaled",
        is_scaled=True,
        num_jobs=14,
        late=1,
        wait_p50_s=pytest.approx(5.5),
        wait_p95_s=pytest.approx(9.1),
        patience_p95_s=waits[12],
        ttft_p50_s=pytest.approx(5.7),
        ttft_p95_s=pytest.approx(9.3),
        most_workers=2,
        worker_hours=pytest.approx(15.15 / 3600),
        utilisation=pytest.approx(6.05 / 15.15),
        cost=pytest.approx(15.15 * 2),
    )
    plain = forecast(fixed, None)
    assert (plain.is_scaled, plain.cost, plain.most_workers, plain.late) == (False, None, 2, 1)
    kept = replace(plain, late=0, patience_p95_s=5.0)
    assert [kept.keeps(5.0), kept.keeps(4.9), replace(kept, late=1).keeps(9.0)] == [True, False, False]
    assert replace(kept, patience_p95_s=None).keeps(9.0) is False


def test_the_picture_has_the_bars_the_arrivals_and_the_workers(fixed: Run, scaled: Run) -> None:
    runs = [fixed, scaled]
    forecasts = [forecast(run, 7200.0) for run in runs]
    drawn = svg(forecasts, runs, advice="Keep <2> & wait.", error="none")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert words == [
        "Keep &lt;2> &amp; wait.",
        "fake@1: 2 fixed",
        "fake@1: 0..2 scaled",
        *("wait, p95", "2.30 s", "9.10 s"),
        *("time to the first token, p95", "2.55 s", "9.30 s"),
        *("cost", "53", "30"),
        "Error of the forecast against live runs: none",
        *("fake@1: 0..2 scaled", "jobs (filled, most 6", "in 0 s), workers (line)", "0 s", "13 s", "2"),
    ]
    bars = re.findall(r'width="([\d.]+)" height="16" fill="(#\w+)"', drawn)
    most = (960 - 190 - 60) / 3 - 60
    assert [float(width) for width, _ in bars] == [
        pytest.approx(share * most, abs=0.1) for share in (2.3 / 9.1, 1, 2.55 / 9.3, 1, 1, 15.15 / 26.3)
    ]
    rows = re.findall(r'y="([\d.]+)" width="[\d.]+" height="16"', drawn)
    figures = [re.findall(rf'y="([\d.]+)"[^>]*>{figure}<', drawn) for figure in ("2.30 s", "9.10 s", "53", "30")]
    assert (rows, figures) == (["96", "118"] * 3, [["109.0"], ["131.0"]] * 2), "each figure is beside its bar"
    assert [colour for _, colour in bars] == ["#1b6ca8", "#2a7f62"] * 3
    (path,) = re.findall(r'<path d="([^"]*)"', drawn)
    width = (960 - 190 - 20) / scaled.ended_at
    steps = re.findall(r"H([\d.]+) V([\d.]+)", path)
    assert [float(at) for at, _ in steps] == [pytest.approx(190 + width * at, abs=0.1) for at in (0, 2, 6, 12)]
    none, one, two, again = (float(high) for _, high in steps)
    assert (none - one, none - two, again) == (32, 64, one)
    assert "worker-hours" in svg([replace(forecasts[0], cost=None), forecasts[1]], runs, advice="", error="")
    hours = svg([replace(one, cost=None) for one in forecasts], runs, advice="", error="")
    assert "worker-hours" in hours
    assert "0.01 h" in hours


def test_generated_jobs_are_these() -> None:
    found = {}
    for shape in Shape:
        jobs = generate(Generated(shape, num_jobs=500, hours=48.0, seed=3))
        totals = (sum(one.at_s for one in jobs), sum(one.prompt_tokens for one in jobs))
        found[shape] = (round(totals[0]), totals[1], sum(one.output_tokens for one in jobs))
        assert {one.max_tokens - 2 * one.output_tokens for one in jobs} == {0}
    assert found == {
        Shape.DIURNAL: (37_322_147, 97_206, 76_598),
        Shape.BURSTY: (29_578_306, 97_537, 71_836),
        Shape.BATCH_HEAVY: (8_269_309, 98_306, 73_662),
    }
    jobs = generate(Generated(Shape.BATCH_HEAVY, num_jobs=6, hours=2.0))
    assert [(round(one.at_s, 1), one.class_rank, one.deadline_s) for one in jobs] == [
        (0.0, BATCH, 7200.0),
        (4.4, BATCH, 7200.0),
        (7.0, BATCH, 7200.0),
        (16.8, BATCH, 7200.0),
        (2171.3, STANDARD, None),
        (5475.4, STANDARD, None),
    ]
    assert (jobs[0].prompt_tokens, jobs[0].output_tokens, jobs[0].tenant) == (100, 115, "tenant")


def written(folder: Path, rates: dict[str, Any], trace: str) -> list[str]:
    (folder / "fake.json").write_text(json.dumps(rates))
    (folder / "trace.csv").write_text(trace)
    return [str(folder / "trace.csv"), "--rates", str(folder / "fake.json")]


TRACE = "at_s,prompt_tokens,output_tokens\n" + "5,10,20\n" * 30


def test_the_table_is_aligned_and_has_the_cost_if_there_is_a_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = written(tmp_path, WRITTEN, TRACE)
    assert main([*words, "--workers", "1..3", "--worker-hour", "3600", "--wait-s", "1"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    heads = ["version", "workers", "wait p50", "p95", "first token p50", "p95", "late", "kept", "worker-hours", "busy"]
    assert re.split(r" {2,}", lines[0]) == [*heads, "cost"]
    names = ["1 fixed", "2 fixed", "3 fixed", "1..3 scaled"]
    assert [re.split(r" {2,}", line)[1] for line in lines[1:5]] == names
    assert {len(line) for line in lines[:5]} == {len(lines[0])}
    assert told.err.splitlines() == [f"· fake: {name}" for name in names]
    assert lines[-1].startswith("error against")
    assert main([*words, "--workers", "1..1", "--wait-s", "0.001"]) == 0
    short = capsys.readouterr().out.splitlines()
    assert ("cost" in short[0], short[-2].startswith("No capacity")) == (False, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--jobs", "0"], "--jobs: '0'"),
        (["--jobs", "1000001"], "1 to 1,000,000"),
        (["--fixed", "1,1001"], "--fixed: '1001'"),
        (["--hours", "0"], "--hours: '0'"),
        (["--hours", "inf"], "--hours: 'inf'"),
        (["--wait-s", "soon"], "--wait-s: 'soon'"),
        (["--workers", "3..1"], "argument --workers"),
    ],
)
def test_wrong_options_are_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["diurnal", *options])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = written(tmp_path, WRITTEN, TRACE)
    assert main([*words, "--workers", "1..1", "--picture", str(tmp_path / "none" / "a.svg")]) == 1
    assert f"{tmp_path}/none/a.svg" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(InvalidRequest, match=r"gone\.csv"):
        read_csv(tmp_path / "gone.csv")
    with pytest.raises(InvalidRequest, match=r"gone\.json"):
        read_rates(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text('{"decode_tokens_per_s": {"1": 0}}')
    with pytest.raises(InvalidRequest, match=r"bad\.json: decode_tokens_per_s\.1"):
        read_rates(tmp_path / "bad.json")
    assert (read_rates(tmp_path / "fake.json").name, Rates.model_validate(WRITTEN).name) == ("fake", "")
    (tmp_path / "named.json").write_text(json.dumps({**WRITTEN, "name": "mine"}))
    assert read_rates(tmp_path / "named.json").name == "mine"


def test_a_step_with_prompts_takes_the_time_of_both_and_a_grain_that_of_its_tokens() -> None:
    assert RATES.step_s(4, 0) == pytest.approx(0.05)
    assert SLOW.step_s(4, 100) == pytest.approx(0.05 + 0.5)
    assert SLOW.step_s(0, 100) == pytest.approx(0.05 + 0.5)
    assert SLOW.step_s(4, 10, grain=3) == pytest.approx(0.15 + 0.15)
    assert SLOW.step_s(0, 10, grain=3) == pytest.approx(0.05 + 0.15)
    assert [coarse(number, 4) for number in (1, 4, 11, 100)] == [1, 1, 3, 25]


def test_a_job_of_the_whole_pool_fits_and_a_long_trace_has_a_grain_with_a_bound() -> None:
    whole = Arrival(0.0, 4000, 96, 96)
    assert too_long([whole], RATES) is None
    assert too_long([replace(whole, max_tokens=97)], RATES) is not None
    many = [Arrival(0.0, 10, 160, 160)] * 1000
    assert grain_of(many, RATES) == 3, "160,000 tokens in grains of 60,000"
    assert grain_of(many, RATES.model_copy(update={"slots": 128})) == 2, "a block for every slot"
    assert grain_of([replace(one, output_tokens=16) for one in many] * 10, RATES) == 2, "eight tokens of an output"


def test_a_pool_has_a_block_for_each_sixteen_tokens_and_for_each_as_many_as_a_grain_stands_for() -> None:
    rates = RATES.model_copy(update={"kv_tokens": 960})
    sizes = [(runner.num_blocks, runner.context_window) for runner in (VirtualRunner(rates, n) for n in (1, 3, 100))]
    assert sizes == [(60, 960), (20, 320), (1, 16)]


def test_the_advice_names_the_cheapest_and_what_is_nearest_to_it() -> None:
    late = replace(FIXED, late=2)
    later = replace(FIXED, capacity="1 fixed", late=3, patience_p95_s=0.5)
    assert Naming("2 fixed of m (95 %", "2.0 s, 2 late)") == advice([later, late], 10.0)
    cheaper = replace(FIXED, capacity="1 fixed", worker_hours=2.0)
    assert "(1 fixed of m)" in advice([FIXED, cheaper], 10.0)
    sooner = replace(FIXED, capacity="3 fixed", patience_p95_s=0.5)
    assert "(3 fixed of m)" in advice([FIXED, sooner], 10.0), "at the same cost"
    failing = replace(FIXED, capacity="0..2 scaled", is_scaled=True, late=1, patience_p95_s=30.0)
    nearest = replace(failing, capacity="1..2 scaled", patience_p95_s=20.0)
    assert "; 1..2 scaled of m" in advice([FIXED, failing, nearest], 10.0)
