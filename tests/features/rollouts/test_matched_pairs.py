"""Pairs of jobs, the values that the judge compares, and the reading of a row of ``jobs``. Pure."""

import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import Evidence, SideSums, outcome_of
from headrace.features.rollouts.judge import Verdict, judge
from headrace.features.rollouts.matched_pairs import MEASURES, JobOutcome, JobPair, PairedJobs, bound_of, pair_up
from headrace.features.rollouts.sequential_test import log_e_value, log_mean, spread_between
from tests.refusals import Naming

JOB = JobOutcome("a", input_tokens=5, first_token_s=1.0, token_s=0.5, output_tokens=9, disagreement=0.0)
BOUNDS = Bounds()


def test_pairs_are_of_one_tenant_before_others_and_of_one_stratum() -> None:
    first, second, other = (JobOutcome(name, output_tokens=n) for n, name in enumerate(("a", "a", "b")))
    stable = [JobOutcome(name, output_tokens=10 + n) for n, name in enumerate(("a", "c", "c", "d", "e", "f"))]
    far = [JobOutcome("a", class_rank=2), JobOutcome("a", input_tokens=9)]
    found = pair_up([first, second, other], [*stable, *far])
    assert found.own == [JobPair(first, stable[0])]
    # In turn over the tenants: the first of each, then the second.
    assert found.foreign == [JobPair(second, stable[1]), JobPair(other, stable[3])]
    assert found.placebo == [JobPair(stable[2], stable[5])]
    assert pair_up([first], []) == PairedJobs([], [], [])
    same = [JobOutcome("c", output_tokens=n) for n in range(2)]
    assert pair_up([], same).placebo == [], "two jobs of one tenant show no difference of tenants"


def test_prompts_are_alike_within_a_power_of_two() -> None:
    lengths = {tokens: replace(JOB, input_tokens=tokens).stratum for tokens in (0, 1, 2, 3, 4, 7, 8)}
    assert lengths == {0: (1, 0), 1: (1, 1), 2: (1, 2), 3: (1, 2), 4: (1, 3), 7: (1, 3), 8: (1, 4)}
    assert replace(JOB, class_rank=0).stratum == (0, 3)
    assert (JobOutcome("a").cell, JobOutcome("b").cell) == (3, 57)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, {}),
        ({"error_code": "engine_error"}, {"errors": 1.0}),
        ({"error_code": "numerical_error"}, {"errors": 1.0, "invalid_numbers": 1.0}),
        ({"error_code": "grammar_stuck"}, {"schema_failures": 1.0}),
        ({"error_code": "policy_blocked_output"}, {"policy_blocks": 1.0}),
        *(({"error_code": code}, {}) for code in ("cancelled", "deadline_exceeded", "invalid_payload")),
        ({"error_code": "context_length_exceeded"}, {}),
        (
            {"has_ended": False, "error_code": "engine_error"},
            {"unfinished": 1.0, **dict.fromkeys(("errors", "invalid_numbers", "schema_failures", "policy_blocks"))},
        ),
        ({"has_succeeded": False}, {"longer_answers": None, "shorter_answers": None}),
        ({"output_tokens": 0}, {"longer_answers": 1.0, "shorter_answers": 1.0}),
        ({"first_token_s": None}, {"first_token": None}),
        ({"disagreement": 0.75}, {"disagreement": 0.75}),
    ],
)
def test_each_measure_reads_its_own_of_a_job(changes: dict[str, Any], seen: dict[str, float | None]) -> None:
    calm = dict.fromkeys(("errors", "invalid_numbers", "schema_failures", "policy_blocks", "unfinished"), 0.0)
    whole = calm | {"first_token": 1.0, "token_time": 0.5, "longer_answers": 10.0, "shorter_answers": 10.0}
    job = replace(JOB, **changes)
    assert {name: measure.read(job) for name, measure in MEASURES.items()} == whole | {"disagreement": 0.0} | seen


def test_a_pair_is_compared_by_its_difference_or_its_order() -> None:
    def compared(name: str, **changes: Any) -> float | None:
        return MEASURES[name].compare(JobPair(replace(JOB, **changes), JOB), bound_of(BOUNDS, name))

    assert compared("errors", error_code="engine_error") == 1.0
    assert MEASURES["errors"].compare(JobPair(JOB, replace(JOB, error_code="engine_error")), 0.005) == -1.0
    assert compared("disagreement", disagreement=0.39) == 0.3, "rounded down, in favour of the candidate"
    assert [compared("token_time", token_s=seconds) for seconds in (0.55, 0.56, 0.1)] == [-1.0, 1.0, -1.0]
    assert compared("token_time", token_s=None) is None
    assert [compared("longer_answers", output_tokens=num) for num in (11, 12)] == [-1.0, 1.0]
    assert [compared("shorter_answers", output_tokens=num) for num in (7, 6)] == [-1.0, 1.0]
    assert (MEASURES["errors"].margin(0.005), MEASURES["token_time"].margin(1.1)) == (0.005, 0.0)


def test_the_bounds_of_every_rollout_are_known() -> None:
    assert BOUNDS.model_dump() == {
        "false_alarm": 0.01,
        "errors": 0.005,
        "invalid_numbers": 0.001,
        "schema_failures": 0.005,
        "policy_blocks": 0.02,
        "unfinished": 0.01,
        "first_token": 1.1,
        "token_time": 1.1,
        "longer_answers": 1.25,
        "shorter_answers": 1.25,
        "disagreement": 0.5,
        "settle_s": 300.0,
    }
    assert MEASURES.keys() == BOUNDS.model_dump().keys() - {"false_alarm", "settle_s"}
    Bounds(false_alarm=0.2, first_token=1, longer_answers=10, settle_s=86_400)
    for bad in (
        {"false_alarm": 0},
        {"false_alarm": 0.21},
        {"errors": 0},
        {"errors": 1},
        {"token_time": 0.99},
        {"token_time": 10.1},
        {"settle_s": 0.9},
        {"settle_s": 86_401},
        {"more": 1},
    ):
        with pytest.raises(ValidationError):
            Bounds.model_validate(bad)


ROW: dict[str, Any] = {
    "tenant_id": "a",
    "class_rank": 2,
    "input_tokens": 7,
    "state": "succeeded",
    "epoch": 1,
    "code": None,
    "usage": {"queue_ms": 40.0, "first_token_ms": 140.0, "compute_ms": 300.0, "output_tokens": 11, "input_tokens": 5},
    "started_at": datetime(2026, 11, 29, tzinfo=UTC),
    "completed_at": datetime(2026, 11, 29, tzinfo=UTC) + timedelta(seconds=4),
    "pipeline_version": None,
}


def test_a_row_is_read_with_its_times_in_seconds() -> None:
    whole = outcome_of(ROW)
    assert whole == JobOutcome("a", 2, 7, True, True, None, 0.1, 0.02, 11, None)

    def read(**changes: Any) -> JobOutcome:
        usage = ROW["usage"] | changes.pop("usage", {})
        return outcome_of({**ROW, "usage": usage, **changes})

    assert read(epoch=2) == replace(whole, first_token_s=None, token_s=None)
    assert read(state="failed", code="odd") == replace(whole, has_succeeded=False, error_code="odd")
    assert read(completed_at=None).has_ended is False
    assert read(pipeline_version=3).token_s == 4.0
    assert read(pipeline_version=3, started_at=None).token_s is None
    encoder = {"output_tokens": 0, "first_token_ms": None}
    assert read(usage=encoder).token_s == 0.06
    assert read(usage=encoder | {"input_tokens": 0}).token_s == 0.3
    assert read(usage={"output_tokens": 1}).token_s is None
    assert read(usage={"compute_ms": None}).token_s is None
    assert read(usage={"queue_ms": None}).first_token_s == 0.14
    assert read(usage={"queue_ms": 140.0}).first_token_s is None
    no_times = outcome_of(ROW, disagreement=0.5, has_times=False)
    assert no_times == replace(whole, first_token_s=None, token_s=None, disagreement=0.5)


def test_a_side_has_a_share_or_a_geometric_mean() -> None:
    shares, times = SideSums(), SideSums()
    for value in (1.0, 0.0, 0.0, 1.0):
        shares.add(value, is_share=True)
    for value in (0.5, 2.0, 0.0):
        times.add(value, is_share=False)
    assert (shares, shares.usual(is_share=True)) == (SideSums(4, 2.0), 0.5)
    assert round(times.usual(is_share=False) or 0, 9) == 0.001
    assert SideSums().usual(is_share=True) is None


def evidence(num: int, **changes: Any) -> Evidence:
    found = Evidence(num_candidate=num, num_stable=num + 1)
    found.add(PairedJobs(own=[JobPair(replace(JOB, **changes), JOB)] * num), BOUNDS)
    return found


def test_the_judge_says_its_verdict_with_figures() -> None:
    verdict = judge(evidence(50, error_code="engine_error", token_s=2.0), BOUNDS)
    checks = {check.name: check for check in verdict.checks}
    assert verdict.reason == f"{checks['errors'].text}; {checks['token_time'].text}"
    assert checks["errors"].text == Naming("errors: 100 %", " 0 %", "50 pairs", "0.5 %", "worse")
    assert checks["token_time"].text == Naming("token time: 2 ", " 0.5 ", "50 pairs", " 1.1 ", "worse")
    assert checks["first_token"].text == Naming(" 1.1 ", "within")
    assert checks["policy_blocks"].text == Naming("2 %", "not decided")
    shown = checks["errors"].as_json()
    assert shown | {"log_e": 0, "text": ""} == {
        "name": "errors",
        "stable": 0.0,
        "candidate": 1.0,
        "bound": 0.005,
        "num_pairs": 50,
        "log_e": 0,
        "needed": pytest.approx(3.0),
        "decision": "bad",
        "text": "",
    }
    assert shown["log_e"] > 3
    none = judge(Evidence(), BOUNDS)
    assert (none.is_bad, none.reason, none.checks[0].text) == (False, None, Naming("errors: no pair"))
    assert (none.checks[0].log_e, Verdict(is_bad=False).reason) == (0.0, None)
    strict = judge(evidence(1), Bounds(false_alarm=0.1))
    assert strict.checks[0].needed == pytest.approx(2.0)


def test_evidence_comes_back_as_it_was_stored() -> None:
    foreign = [JobPair(replace(JOB, tenant_id="a", token_s=2.0), replace(JOB, tenant_id="b"))]
    placebo = [JobPair(replace(JOB, tenant_id="c", disagreement=0.5), replace(JOB, tenant_id="d"))]
    found = evidence(2, token_s=2.0)
    found.add(PairedJobs(foreign=foreign, placebo=placebo), BOUNDS)
    found.read_until = found.mirrored_until = datetime(2026, 11, 29, tzinfo=UTC)
    assert (found.candidate_cells, found.stable_cells) == (Counter({3: 1}), Counter({57: 1}))
    times = found.measures["token_time"]
    assert (times.own, times.foreign) == ({1.0: 2}, {1.0: 1})
    sums = found.measures["disagreement"].placebo
    cells = {cell: (one.num, one.total, one.squares) for cell, one in sums.items()}
    assert cells == {JobOutcome("c").cell: (1, 0.5, 0.25), JobOutcome("d").cell: (1, -0.5, 0.25)}
    assert Evidence.from_json(found.as_json()) == found
    assert found.summary() == {"num_candidate": 2, "num_stable": 3}
    assert Evidence.from_json({}) == Evidence.from_json(None) == Evidence()
    later = found.as_json()
    later["measures"]["of_a_later_release"] = later["measures"]["errors"]
    del later["mirrored_until"]
    assert Evidence.from_json(later) == replace(found, mirrored_until=None)


def test_foreign_pairs_need_a_wider_margin_and_own_pairs_play_alone_too() -> None:
    found = Evidence()
    own = [JobPair(replace(JOB, error_code="engine_error"), JOB)] * 3
    foreign = [JobPair(replace(JOB, tenant_id=name), replace(JOB, tenant_id="z")) for name in "abcd"]
    found.add(PairedJobs(own=own, foreign=foreign), BOUNDS)
    check = next(one for one in judge(found, BOUNDS).checks if one.name == "errors")
    # Nothing is known of the tenants' spread: 0.1, three times, over four tenants on one side and one on the other.
    margin = 0.005 + 3.0 * 0.1 * math.sqrt(1 / 4 + 1)
    alone = log_e_value([({1.0: 3}, 0.005)])
    both = log_e_value([({1.0: 3}, 0.005), ({0.0: 4}, margin)])
    assert check.log_e == pytest.approx(log_mean([alone, both]) / math.log(10))
    # Placebo pairs of five groups of tenants show the spread.
    names = "abcdef"
    placebo = [
        JobPair(
            replace(JOB, tenant_id=one, error_code="engine_error" if one == "a" else None), replace(JOB, tenant_id=two)
        )
        for one in names
        for two in names
        if one != two
    ]
    found.add(PairedJobs(placebo=placebo), BOUNDS)
    groups = list(found.measures["errors"].placebo.values())
    spread = spread_between(groups)
    assert (len(groups), spread is not None and spread > 0) == (6, True)
    margin = 0.005 + 3.0 * (spread or 0) * math.sqrt(1 / 4 + 1)
    both = log_e_value([({1.0: 3}, 0.005), ({0.0: 4}, margin)])
    check = next(one for one in judge(found, BOUNDS).checks if one.name == "errors")
    assert check.log_e == pytest.approx(log_mean([alone, both]) / math.log(10))
