"""`headrace plan` as a program: traces in, figures, a picture and a sentence out."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from headrace.features.planner.__main__ import main
from headrace.features.planner.arrivals import Arrival, Generated, Shape, generate, read_csv
from headrace.features.planner.forecast import MEASURED_ERROR, Forecast, advice, percentile
from headrace.features.planner.job_history import read_ended
from headrace.store.jobs import claims
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.workers.conftest import Bench

RATES = {"decode_tokens_per_s": {"1": 20, "4": 80}, "cold_start_s": 6, "slots": 4, "kv_tokens": 4096}
TRACE = "at_s,prompt_tokens,output_tokens\n" + "5,10,20\n" * 30


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "fake.json"
    path.write_text(json.dumps(RATES))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def test_two_versions_with_fixed_and_scaled_workers(
    rates: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, picture = tmp_path / "slow.json", tmp_path / "plan.svg"
    slow.write_text(json.dumps({**RATES, "decode_tokens_per_s": {"1": 5, "4": 20}}))
    words = [str(trace), "--rates", str(rates), "--against", str(slow), "--workers", "0..2", "--fixed", "1,2"]
    assert main([*words, "--wait-s", "9", "--worker-hour", "3600", "--json", "--picture", str(picture)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    figures = {(one["rates"], one["capacity"]): one for one in found["forecasts"]}
    names = ["1 fixed", "2 fixed", "0..2 scaled", "1..2 scaled"]
    assert list(figures) == [(version, name) for version in ("fake", "slow") for name in names]
    assert figures["fake", "2 fixed"]["wait_p95_s"] < figures["fake", "1 fixed"]["wait_p95_s"]
    assert figures["fake", "1 fixed"]["wait_p95_s"] < figures["slow", "1 fixed"]["wait_p95_s"]
    assert figures["fake", "0..2 scaled"]["wait_p50_s"] > RATES["cold_start_s"]
    assert figures["fake", "1 fixed"]["cost"] == pytest.approx(3600 * figures["fake", "1 fixed"]["worker_hours"])
    assert "(1 fixed of fake)" in found["advice"]
    drawn = picture.read_text()
    assert drawn.startswith("<svg")
    assert found["error"] == MEASURED_ERROR
    assert all(words in drawn for words in (MEASURED_ERROR.replace("<", "&lt;"), "slow: 0..2 scaled", "wait, p95"))


def test_the_table_has_a_line_for_each_capacity_and_the_advice(
    rates: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trace), "--rates", str(rates), "--workers", "1..1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r" {2,}", line)[1] for line in lines[:3]] == ["workers", "1 fixed", "1..1 scaled"]
    assert lines[-2].startswith(("Keep", "Autoscale"))


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("a,b\n1,2\n", "first line"),
        ("at_s,prompt_tokens,output_tokens\n", "has 0 jobs"),
        ("at_s,prompt_tokens,output_tokens\n1,2,3\n1,2\n", "line 3"),
        ("at_s,prompt_tokens,output_tokens\n-1,2,3\n", "line 2: at_s"),
        ("at_s,prompt_tokens,output_tokens\n1,0,3\n", "line 2: prompt_tokens"),
        ("at_s,prompt_tokens,output_tokens\n1,2.5,3\n", "'2.5'"),
        ("at_s,prompt_tokens,output_tokens\n1,2,٣\n", "'٣'"),
        ("at_s,prompt_tokens,output_tokens,max_tokens\n1,2,9,3\n", "line 2: max_tokens"),
        ("at_s,prompt_tokens,output_tokens,service_class\n1,2,3,best\n", "'best'"),
        ("at_s,prompt_tokens,output_tokens\n1,4000,900\n", "kv_tokens 4,096"),
    ],
)
def test_a_wrong_trace_is_refused(
    written: str, told: str, rates: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace.write_text(written)
    assert main([str(trace), "--rates", str(rates)]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"decode_tokens_per_s": {}}, "decode_tokens_per_s"),
        ({"decode_tokens_per_s": {"1": 0}}, "decode_tokens_per_s.1"),
        ({"speed": 1}, "speed"),
    ],
)
def test_wrong_rates_are_refused(
    changes: dict[str, Any], told: str, rates: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates.write_text(json.dumps({**RATES, **changes}))
    assert main([str(trace), "--rates", str(rates)]) == 1
    assert told in capsys.readouterr().err
    assert main([str(trace)]) == 1
    assert "give --rates" in capsys.readouterr().err


def test_columns_that_may_be_left_out_are_read_and_jobs_are_in_order(trace: Path) -> None:
    trace.write_text(
        "at_s,prompt_tokens,output_tokens,max_tokens,service_class,tenant,deadline_s\n"
        "9,10,20,40,interactive,acme,30\n7.5,10,20,,,,\n"
    )
    rank = CLASS_RANKS[ServiceClass.INTERACTIVE]
    assert read_csv(trace) == [Arrival(0.0, 10, 20, 20), Arrival(1.5, 10, 20, 40, rank, "acme", 30.0)]


@pytest.mark.parametrize("shape", list(Shape))
def test_generated_jobs_are_the_same_for_the_same_seed(shape: Shape) -> None:
    wanted = Generated(shape, num_jobs=3_000, hours=2.0)
    jobs = generate(wanted)
    assert jobs == generate(wanted) != generate(replace(wanted, seed=2))
    assert (len(jobs), jobs[0].at_s) == (3_000, 0.0)
    assert 120 < sum(one.output_tokens for one in jobs) / 3_000 < 180
    in_batch = [one for one in jobs if one.class_rank == CLASS_RANKS[ServiceClass.BATCH]]
    assert len(in_batch) == (2_400 if shape is Shape.BATCH_HEAVY else 0)
    # Bursts fill a few minutes, the wave most of them.
    minutes = {int(one.at_s // 60) for one in jobs}
    assert (len(minutes) <= 25) == (shape is Shape.BURSTY)


FIXED = Forecast("m", "2 fixed", False, 9, 0, 1.0, 2.0, 2.0, 1.0, 2.0, 2, 4.0, 0.05, None)
SCALED = replace(FIXED, capacity="0..2 scaled", is_scaled=True, worker_hours=1.0, wait_p95_s=8.0, patience_p95_s=8.0)


@pytest.mark.parametrize(
    ("forecasts", "begin", "reason"),
    [
        ([FIXED, SCALED], "Autoscale (0..2 scaled of m)", "5% of 4.00"),
        ([FIXED, replace(SCALED, patience_p95_s=11.0)], "Keep fixed", "not keep"),
        ([FIXED, replace(SCALED, late=1)], "Keep fixed", "1 late"),
        ([FIXED, replace(SCALED, worker_hours=5.0)], "Keep fixed", "needs 5.00"),
        ([FIXED, replace(SCALED, worker_hours=3.8)], "Keep fixed", "cold starts"),
        ([replace(FIXED, patience_p95_s=20.0), SCALED], "Autoscale", "no fixed"),
        ([replace(FIXED, late=3)], "No capacity", "more workers"),
        ([FIXED], "Keep fixed", "the least"),
    ],
)
def test_the_advice_is_the_cheapest_that_keeps_the_wait(forecasts: list[Forecast], begin: str, reason: str) -> None:
    told = advice(forecasts, 10.0)
    assert told.startswith(begin)
    assert reason in told


def test_a_percentile_is_one_of_the_values() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.75, 0.95)] == [1.0, 2.0, 3.0, 4.0]
    assert percentile([], 0.5) is None


def test_the_history_of_a_model_is_trace_and_speed(
    bench: Bench, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headrace.features.planner.__main__.load_settings", lambda: settings)
    words = [f"history:{bench.version.model}", "--workers", "1..1", "--json"]
    assert main(words) == 1
    assert "no job" in capsys.readouterr().err
    ids = bench.submit(4)
    claimed = claims.claim(bench.db, "w", bench.queue, ids, 60.0)
    usage = {"input_tokens": 1, "output_tokens": 9, "first_token_ms": 2000.0}
    state = JobState.SUCCEEDED
    ends = [claims.Finish(one.job_id, one.epoch, state, {"text": ""}, None, usage, ()) for one in claimed.values()]
    assert claims.finish(bench.db, ends) == set(ids)
    with bench.db.begin() as connection:
        # Four beside each other, 8 tokens after the first one in 8 s.
        connection.execute(
            text(
                "UPDATE attempts SET started_at = jobs.created_at + interval '1 s', "
                "ended_at = jobs.created_at + interval '10 s' FROM jobs WHERE jobs.id = attempts.job_id"
            )
        )
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rates"][0]["name"] == bench.queue
    assert found["rates"][0]["decode_tokens_per_s"]["4"] == pytest.approx(4.0, rel=0.1)
    assert {one["num_jobs"] for one in found["forecasts"]} == {4}


def test_the_history_has_the_last_attempts_of_the_newest_jobs_of_one_queue(bench: Bench) -> None:
    twice, failed, once, old, elsewhere, running = bench.submit(6)

    def take(job_id: str, worker: str) -> claims.Claim:
        return claims.claim(bench.db, worker, bench.queue, [job_id], 60.0)[job_id]

    held = take(twice, "first")
    claims.release(bench.db, [claims.Release(twice, held.epoch)])
    for job_id in (twice, failed, once, old, elsewhere):
        state = JobState.FAILED if job_id == failed else JobState.SUCCEEDED
        usage = {"input_tokens": 1, "output_tokens": 9, "first_token_ms": 2000.0}
        epoch = take(job_id, "second").epoch
        claims.finish(bench.db, [claims.Finish(job_id, epoch, state, {"text": ""}, None, usage, ())])
    take(running, "second")
    with bench.db.begin() as connection:
        moved = "UPDATE jobs SET queue = 'other@1' WHERE id = :id"
        connection.execute(text(moved), {"id": elsewhere})
        aged = "UPDATE jobs SET created_at = created_at - interval '2 hours' WHERE id = :id"
        connection.execute(text(aged), {"id": old})
        # In this order, however many were accepted together.
        for number, job_id in enumerate((twice, failed, once)):
            later = "UPDATE jobs SET created_at = created_at + make_interval(secs => :number) WHERE id = :id"
            connection.execute(text(later), {"id": job_id, "number": number})
    found = read_ended(bench.db, bench.queue, 3600)
    assert [(one.worker, one.is_typical, one.first_token_s) for one in found] == [
        ("second", False, 2.0),
        ("second", False, 2.0),
        ("second", True, 2.0),
    ]
    assert [one.created_at for one in found] == sorted(one.created_at for one in found)
    assert read_ended(bench.db, bench.queue, 3600, most=2) == found[1:]
