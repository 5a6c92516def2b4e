"""The judge on simulated rollouts: bad versions are found by the right check, good ones are left alone."""

from dataclasses import replace

import pytest

from benchmarks.rollouts.__main__ import run
from benchmarks.rollouts.traffic import CandidateFault, Traffic
from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import Evidence
from headrace.features.rollouts.judge import Check, judge
from headrace.features.rollouts.matched_pairs import JobOutcome, JobPair, PairedJobs, pair_up


@pytest.mark.parametrize(
    ("fault", "check", "most_jobs"),
    [
        (CandidateFault.ERRORS, "errors", 4000),
        (CandidateFault.SLOW, "token_time", 600),
        (CandidateFault.NAN, "invalid_numbers", 2000),
        (CandidateFault.LONGER, "longer_answers", 5000),
        (CandidateFault.WORSE, "disagreement", 2000),
    ],
)
def test_a_bad_version_is_found_by_the_check_of_its_fault(fault: CandidateFault, check: str, most_jobs: int) -> None:
    assert check in run(Traffic(1, fault), most_jobs).bad


@pytest.mark.parametrize("sticky", ["user", "tenant"])
def test_a_good_version_is_left_alone(sticky: str) -> None:
    assert run(Traffic(2, CandidateFault.NONE, sticky), 2000).bad == ()


def test_one_tenant_with_errors_does_not_condemn_the_version_that_it_meets() -> None:
    """By the sticky key, a tenant with errors of its own may be all that the candidate gets."""
    calm = [JobOutcome(f"tenant-{n % 30}") for n in range(2000)]
    ill = replace(calm[0], tenant_id="ill", has_succeeded=False, error_code="engine_error")
    candidate = [ill if n % 10 == 0 else replace(ill, error_code=None) for n in range(500)]
    others = [replace(job, error_code="engine_error") if job.tenant_id == "tenant-3" else job for job in calm]
    assert _errors(candidate, others).decision == "undecided"
    # Against the tenant's own jobs on the stable version the same errors are evidence.
    assert _errors(candidate, [replace(ill, error_code=None)] * 500).decision == "bad"


def test_two_tenants_are_compared_only_where_the_difference_is_large() -> None:
    """Nothing is known of how tenants differ while there are two of them, one on each side."""
    stable = [JobOutcome("acme")] * 600
    for share, decision in ((10, "undecided"), (1, "bad")):
        candidate = [JobOutcome("globex", error_code="engine_error" if n % share == 0 else None) for n in range(600)]
        assert _errors(candidate, stable).decision == decision


def test_a_few_tenants_that_are_alike_do_not_tell_how_tenants_differ() -> None:
    codes = [None if n % 120 else "engine_error" for n in range(2400)]
    stable = [JobOutcome(("acme", "initech", "hooli")[n % 3], error_code=code) for n, code in enumerate(codes)]
    candidate = [JobOutcome("globex", error_code=None if n % 4 else "engine_error") for n in range(400)]
    assert _errors(candidate, stable).decision == "undecided"


def test_errors_of_the_caller_are_not_the_version_s() -> None:
    candidate = [JobOutcome("acme", error_code=code) for code in ("cancelled", "deadline_exceeded") * 1000]
    check = _errors(candidate, [JobOutcome("acme")] * 2000)
    assert check.candidate == 0
    assert check.decision == "good"


def test_only_jobs_of_one_class_and_of_similar_prompts_are_compared() -> None:
    pairs = pair_up(
        [JobOutcome("acme", 1, 100), JobOutcome("acme", 0, 100), JobOutcome("acme", 1, 3000)],
        [JobOutcome("acme", 1, 120), JobOutcome("globex", 1, 2500), JobOutcome("globex", 2, 100)],
    )
    assert [(pair.candidate.input_tokens, pair.stable.input_tokens) for pair in pairs.own] == [(100, 120)]
    assert [(pair.candidate.input_tokens, pair.stable.input_tokens) for pair in pairs.foreign] == [(3000, 2500)]


def test_evidence_survives_the_row_of_the_rollout() -> None:
    evidence, bounds = Evidence(), Bounds()
    traffic = Traffic(4, CandidateFault.SLOW, "tenant").windows()
    for _ in range(3):
        evidence.add(pair_up(*next(traffic)), bounds)
    again = Evidence.from_json(evidence.as_json())
    assert again == evidence
    assert judge(again, bounds) == judge(evidence, bounds)


def test_a_wider_bound_allows_what_a_narrow_one_does_not() -> None:
    slow = PairedJobs(own=[JobPair(JobOutcome("acme", token_s=0.015), JobOutcome("acme", token_s=0.01))] * 100)
    for bounds, is_bad in ((Bounds(), True), (Bounds(token_time=2.0), False)):
        evidence = Evidence()
        evidence.add(slow, bounds)
        verdict = judge(evidence, bounds)
        assert verdict.is_bad is is_bad
        assert ("token time" in (verdict.reason or "")) is is_bad


def test_a_much_faster_version_is_within_the_bounds() -> None:
    fast = PairedJobs(own=[JobPair(JobOutcome("acme", token_s=0.002), JobOutcome("acme", token_s=0.01))] * 200)
    evidence = Evidence()
    evidence.add(fast, Bounds())
    decisions = {check.name: check.decision for check in judge(evidence, Bounds()).checks}
    assert decisions["token_time"] == "good"


def _errors(candidate: list[JobOutcome], stable: list[JobOutcome]) -> Check:
    evidence, bounds = Evidence(), Bounds()
    evidence.add(pair_up(candidate, stable), bounds)
    return next(check for check in judge(evidence, bounds).checks if check.name == "errors")
