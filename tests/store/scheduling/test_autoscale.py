"""How many workers a queue needs: a table of cases, and a simulated queue under a constant load."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.scheduling.autoscale import Decision, QueueState, ScaleHistory, ScaleLimits, WaitingClass, decide
from tests.refusals import Naming

STANDARD, BATCH = CLASS_RANKS[ServiceClass.STANDARD], CLASS_RANKS[ServiceClass.BATCH]
INTERACTIVE = CLASS_RANKS[ServiceClass.INTERACTIVE]
LIMITS = ScaleLimits(0, 8, wait_s=20, cool_down_s=60, zero_after_s=300)
NOW = 1_000.0


def history(replicas: int, **changes: object) -> ScaleHistory:
    """So many workers, of 100 tokens/s each, started in 5 s."""
    known = ScaleHistory(replicas, NOW, NOW, NOW, 0, NOW, cold_start_s=5, worker_tokens_per_s=100)
    return replace(known, **changes)


def waits(tokens: int, rank: int = STANDARD, **more: float) -> tuple[WaitingClass, ...]:
    return (WaitingClass(rank, tokens, **more),)


@pytest.mark.parametrize(
    ("replicas", "state", "changes", "expected"),
    [
        pytest.param(0, {}, {}, 0, id="no work, no worker"),
        pytest.param(0, {"waiting": waits(1)}, {}, 1, id="the first job after zero"),
        pytest.param(0, {"waiting": waits(6_000)}, {}, 4, id="15 s are left after a start of 5 s"),
        pytest.param(2, {"waiting": waits(4_000)}, {}, 2, id="two workers start it in time"),
        pytest.param(2, {"waiting": waits(6_000)}, {}, 4, id="two work during the start of the others"),
        pytest.param(0, {"waiting": waits(60_000)}, {}, 8, id="not more than the most"),
        pytest.param(2, {"waiting": waits(4_000, oldest_age_s=12)}, {}, 8, id="jobs that have waited are nearer"),
        pytest.param(1, {"waiting": waits(20_000, BATCH)}, {}, 1, id="the batch class is patient"),
        pytest.param(1, {"waiting": waits(20_000, BATCH, deadline_in_s=100)}, {}, 3, id="a deadline is not"),
        pytest.param(1, {"waiting": waits(2_000, INTERACTIVE)}, {}, 8, id="nor is the interactive class"),
        pytest.param(1, {"waiting": waits(1_900) + waits(400, INTERACTIVE)}, {}, 2, id="better classes go first"),
        pytest.param(1, {"waiting": waits(5_000)}, {"cold_start_s": 60}, 1, id="a new worker would come too late"),
        pytest.param(3, {"running_jobs": 40, "slots": 16}, {"held_at": 0.0}, 3, id="never below running jobs"),
        pytest.param(3, {"running_jobs": 20, "slots": 16}, {"held_at": 0.0}, 2, id="running jobs need fewer"),
        pytest.param(1, {"running_jobs": 40, "slots": 16}, {}, 1, id="jobs that run ask for no worker more"),
        pytest.param(3, {"load_tokens_per_s": 150}, {"held_at": 0.0}, 2, id="the load holds workers"),
        pytest.param(3, {}, {"held_at": NOW - 59}, 3, id="cool-down"),
        pytest.param(3, {}, {"held_at": NOW - 60, "peak": 2}, 2, id="the most that was needed in the cool-down"),
        pytest.param(3, {}, {"held_at": NOW - 60, "busy_at": NOW - 60}, 1, id="the last worker stays for longer"),
        pytest.param(1, {}, {"held_at": 0.0, "busy_at": NOW - 299}, 1, id="not yet zero"),
        pytest.param(1, {}, {"held_at": 0.0, "busy_at": NOW - 300}, 0, id="zero"),
        pytest.param(3, {"workers": 1}, {"held_at": NOW}, 3, id="workers that died are no decision"),
        pytest.param(3, {}, {"held_at": 0.0, "busy_at": 0.0, "decided_at": 0.0}, 3, id="nothing is known of a gap"),
        pytest.param(0, {"waiting": waits(9_000)}, {"worker_tokens_per_s": None}, 1, id="one worker without a rate"),
        pytest.param(
            1,
            {"waiting": waits(9_000, oldest_age_s=30), "workers": 1},
            {"worker_tokens_per_s": None, "changed_at": NOW - 30},
            2,
            id="one more without a rate",
        ),
        pytest.param(
            2,
            {"waiting": waits(9_000, oldest_age_s=30), "workers": 1},
            {"worker_tokens_per_s": None, "changed_at": NOW - 30},
            2,
            id="the last one has not come yet",
        ),
    ],
)
def test_decisions(replicas: int, state: dict, changes: dict, expected: int) -> None:
    found = decide(QueueState(NOW, **state), LIMITS, history(replicas, **changes))
    assert (found.replicas, bool(found.reason)) == (expected, True), found.reason


KNOWN = "100 tokens/s"


@pytest.mark.parametrize(
    ("replicas", "state", "changes", "reason", "after"),
    [
        pytest.param(10, {}, {"held_at": NOW - 10}, Naming("0 ", "50 s"), {"replicas": 8}, id="lower most"),
        pytest.param(
            4,
            {"workers": 2},
            {"held_at": NOW - 60, "peak": 2, "raised_at": NOW - 5},
            Naming("60 s"),
            {"replicas": 2, "held_at": NOW, "peak": 0, "raised_at": None},
            id="a fall gives up the starts that are pending",
        ),
        pytest.param(
            3,
            {},
            {"held_at": 0.0, "busy_at": 0.0, "decided_at": NOW - 30.5, "raised_at": NOW - 40, "peak": 2},
            Naming("0 ", "60 s"),
            {"decided_at": NOW, "held_at": NOW, "peak": 0, "busy_at": NOW, "raised_at": None},
            id="a gap",
        ),
        pytest.param(
            3,
            {},
            {"held_at": NOW - 61, "busy_at": NOW - 400, "decided_at": NOW - 30, "peak": 2},
            Naming("61 s"),
            {"replicas": 2, "decided_at": NOW, "held_at": NOW, "peak": 0},
            id="not yet a gap",
        ),
        pytest.param(
            1,
            {"waiting": waits(9_000, oldest_age_s=30), "workers": 1},
            {"worker_tokens_per_s": None, "changed_at": NOW - 20},
            Naming("9,000 tokens", "not known"),
            {},
            id="the last one had no time",
        ),
        pytest.param(
            1,
            {"waiting": waits(9_000, oldest_age_s=20), "workers": 1},
            {"worker_tokens_per_s": None, "changed_at": NOW - 30},
            Naming("9,000 tokens", "not known"),
            {},
            id="no job has waited for too long",
        ),
        pytest.param(
            1,
            {"waiting": waits(9_000, INTERACTIVE, oldest_age_s=6), "workers": 1},
            {"worker_tokens_per_s": None, "changed_at": NOW - 30},
            Naming("6 s", "not known"),
            {"replicas": 2, "changed_at": NOW, "raised_at": NOW},
            id="the interactive class is less patient",
        ),
        pytest.param(
            1,
            {"waiting": waits(3_000, oldest_age_s=100)},
            {},
            Naming("3,000 tokens", "(standard)", KNOWN, " 5 s ", " 20 ", " 8 "),
            {"replicas": 8, "raised_at": NOW},
            id="a quarter of the patience is always left",
        ),
        pytest.param(
            1,
            {"waiting": waits(1_000, deadline_in_s=0.5)},
            {},
            Naming("1,000 tokens", "(standard)", KNOWN, " 1 s ", "deadline", " 20 ", " 8 "),
            {"replicas": 8, "raised_at": NOW},
            id="and a second before a deadline",
        ),
        pytest.param(
            2,
            {"running_jobs": 3},
            {"held_at": NOW - 10, "busy_at": 0.0},
            Naming("1 ", "50 s"),
            {"peak": 1, "busy_at": NOW},
            id="running jobs keep a queue busy",
        ),
        pytest.param(
            2,
            {"running_jobs": 3, "slots": 2},
            {"held_at": NOW - 10, "busy_at": 0.0},
            Naming("3 jobs"),
            {"held_at": NOW, "busy_at": NOW},
            id="slots",
        ),
        pytest.param(
            3,
            {"load_tokens_per_s": 150.4},
            {"held_at": NOW - 10},
            Naming("2 ", "50 s"),
            {"peak": 2},
            id="load",
        ),
        pytest.param(
            3,
            {"waiting": waits(1)},
            {"held_at": NOW - 30, "peak": 2, "busy_at": 0.0},
            Naming("1 ", "30 s"),
            {"busy_at": NOW},
            id="a smaller need is no new peak, and what waits keeps a queue busy",
        ),
        pytest.param(
            2,
            {"waiting": waits(4_000), "workers": 1},
            {"raised_at": NOW - 3},
            Naming("4,000 tokens", "(standard)", KNOWN),
            {},
            id="a start that is pending is counted from its beginning",
        ),
        pytest.param(
            3,
            {},
            {"held_at": NOW - 60, "busy_at": NOW - 60},
            Naming("60 s", "300 s"),
            {"replicas": 1, "held_at": NOW},
            id="all but the last leave",
        ),
        pytest.param(
            1,
            {},
            {"held_at": NOW - 60, "busy_at": NOW - 60},
            Naming("60 s", "300 s"),
            {},
            id="the last stays",
        ),
        pytest.param(
            1,
            {},
            {"held_at": NOW - 400, "busy_at": NOW - 300},
            Naming("300 s"),
            {"replicas": 0, "held_at": NOW},
            id="the last leaves",
        ),
        pytest.param(
            2,
            {"waiting": waits(6_000), "workers": 1},
            {"raised_at": NOW - 8},
            Naming("6,000 tokens", "(standard)", KNOWN, " 20 s "),
            {"replicas": 4},
            id="one of two has come",
        ),
        pytest.param(
            2,
            {"waiting": waits(6_000), "workers": 2},
            {"raised_at": NOW - 8},
            Naming("6,000 tokens", "(standard)", KNOWN, " 20 s "),
            {"replicas": 4, "raised_at": NOW, "cold_start_s": 8.0},
            id="both have come",
        ),
        pytest.param(
            2,
            {"waiting": waits(6_000), "worker_tokens_per_s": 50.0},
            {},
            Naming("6,000 tokens", "(standard)", "50 tokens/s", " 20 s "),
            {"replicas": 8, "raised_at": NOW, "worker_tokens_per_s": 50.0},
            id="the newest rate",
        ),
        pytest.param(
            1,
            {"waiting": waits(5_000)},
            {"cold_start_s": 60},
            Naming("5,000 tokens", "(standard)", KNOWN, "ready"),
            {},
            id="late",
        ),
        pytest.param(
            0,
            {"waiting": waits(6_000), "cold_start_s": 15.0},
            {"cold_start_s": None},
            Naming("6,000 tokens", "(standard)", KNOWN, " 20 s ", " 12 ", " 8 "),
            {"replicas": 8, "raised_at": NOW},
            id="a cold start that is only estimated",
        ),
        pytest.param(
            1,
            {"waiting": waits(1_900) + waits(400, INTERACTIVE)},
            {},
            Naming("2,300 tokens", "(standard)", KNOWN, " 20 s "),
            {"replicas": 2, "raised_at": NOW},
            id="both classes together",
        ),
    ],
)
def test_a_decision_says_why_and_hands_on_what_the_next_one_needs(
    replicas: int, state: dict, changes: dict, reason: str, after: dict
) -> None:
    before = history(replicas, **{"changed_at": NOW - 100, "decided_at": NOW - 2, **changes})
    found = decide(QueueState(NOW, **state), LIMITS, before)
    is_needed = found.replicas != min(replicas, LIMITS.most)
    changed_at = NOW if is_needed else before.changed_at
    expected = replace(before, **({"decided_at": NOW, "changed_at": changed_at} | after))
    assert found == Decision(expected.replicas, reason, expected)


def test_the_least_is_kept_and_a_cold_start_is_measured() -> None:
    found = decide(QueueState(NOW), replace(LIMITS, least=2), ScaleHistory())
    assert (found.replicas, found.reason) == (2, Naming("2 "))
    raised = decide(QueueState(NOW, waits(4_000), workers=1), LIMITS, history(1)).history
    assert raised.raised_at == NOW
    pending = decide(QueueState(NOW + 6, waits(4_000), workers=1), LIMITS, raised).history
    assert pending.raised_at == NOW, "still the same start"
    assert decide(QueueState(NOW + 12, workers=raised.replicas), LIMITS, pending).history.cold_start_s == 12


def test_the_reason_says_whether_a_deadline_is_near() -> None:
    patient = decide(QueueState(NOW, waits(6_000)), LIMITS, history(1)).reason
    pressed = decide(QueueState(NOW, waits(20_000, BATCH, deadline_in_s=100)), LIMITS, history(1)).reason
    assert ("deadline" in patient, pressed) == (False, Naming(" 80 s ", "deadline"))


@settings(max_examples=30, deadline=None)
@given(
    load=st.floats(0.05, 5.5),
    tokens_per_s=st.floats(10, 5_000),
    cold_s=st.integers(1, 90),
    job_s=st.floats(0.5, 30),
    knows_rate=st.booleans(),
)
def test_a_constant_load_ends_in_a_constant_number(
    load: float, tokens_per_s: float, cold_s: int, job_s: float, knows_rate: bool
) -> None:
    """``load``: how many workers it keeps busy. ``job_s``: the time of a job, so that some always run."""
    limits = replace(LIMITS, zero_after_s=120)
    known = ScaleHistory(worker_tokens_per_s=tokens_per_s if knows_rate else None)
    ready_at: list[float] = []
    queued = started_before = 0.0
    numbers = []
    for at in range(int(NOW), int(NOW) + 3_600, 2):
        live = sum(ready <= at for ready in ready_at)
        queued += 2 * load * tokens_per_s
        started = min(queued, 2 * live * tokens_per_s)
        queued -= started
        started_before += (started / 2 - started_before) * 2 / 60
        state = QueueState(
            at,
            waits(int(queued), oldest_age_s=queued / (load * tokens_per_s)) if queued >= 1 else (),
            running_jobs=math.ceil(min(load, live) * job_s),
            workers=live,
            load_tokens_per_s=started_before,
            worker_tokens_per_s=tokens_per_s if queued and live else None,
        )
        found = decide(state, limits, known)
        known = found.history
        ready_at = [*ready_at, *[at + cold_s] * (found.replicas - len(ready_at))][: found.replicas]
        numbers.append(found.replicas)
    late = numbers[len(numbers) // 2 :]
    assert len(set(late)) == 1, late
    # At the exact share of 80 % rounding may ask for one more.
    assert load <= late[-1] <= math.ceil(load / 0.8 + 1e-6)
