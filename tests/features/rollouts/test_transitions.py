"""What a rollout does next, decided from values alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from headrace.features.rollouts.judge import Check, Verdict
from headrace.features.rollouts.progress import Progress
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, RolloutState, Step, StickyKey
from headrace.features.rollouts.transitions import RolloutAction, Transition, after, next_transition, overdue_s
from headrace.store.errors import Conflict
from tests.refusals import Naming

BEGAN = datetime(2026, 11, 28, 12, tzinfo=UTC)
FINE = Check("errors", 0.0, 0.0, 0.005, 5, -0.1, 3.0, "undecided", "no errors yet")
LONGER = Check("longer_answers", 100.0, 300.0, 1.25, 40, 1.0, 3.0, "undecided", "answers three times as long")
GOOD = Verdict(is_bad=False, checks=(FINE,))
BAD = Verdict(
    is_bad=True, checks=(Check("errors", 0.0, 0.2, 0.005, 9, 4.0, 3.0, "bad", "the candidate fails more often"),)
)

ROLLOUT = Rollout(
    id="rollout_1",
    model="tiny",
    kind=RolloutKind.MODEL,
    alias="default",
    stable_version=1,
    candidate_version=2,
    mode=RolloutMode.CANARY,
    sticky_key=StickyKey.USER,
    steps=(Step(10, hold_s=60), Step(50, hold_s=60, min_jobs=5)),
    bounds={},
    state=RolloutState.RUNNING,
    current_step=0,
    step_since=BEGAN,
    started_at=BEGAN,
    started_by="tests",
    paused_at=None,
    ended_at=None,
    reason=None,
    evidence={},
    revision=1,
)
LAST = replace(ROLLOUT, current_step=1)


def action(rollout: Rollout, verdict: Verdict = GOOD, **progress: object) -> RolloutAction | None:
    values = {"now": BEGAN + timedelta(seconds=60), "num_in_step": 5, "is_served": True, **progress}
    found = next_transition(rollout, Progress(**values), verdict)
    return None if found is None else found.action


def test_a_step_passes_when_its_time_its_jobs_and_a_worker_are_there() -> None:
    assert action(ROLLOUT) is RolloutAction.ADVANCE
    assert action(LAST) is RolloutAction.PROMOTE
    assert action(ROLLOUT, now=BEGAN + timedelta(seconds=59)) is None
    assert action(LAST, num_in_step=4) is None
    assert action(LAST, is_served=False) is None
    assert action(replace(LAST, state=RolloutState.PAUSED)) is None
    assert action(replace(LAST, mode=RolloutMode.SHADOW)) is RolloutAction.ABORT, "a shadow moves no alias"


def test_nothing_is_promoted_without_evidence_or_against_what_was_seen() -> None:
    by_time = replace(LAST, steps=(Step(10, hold_s=60), Step(50, hold_s=60)))
    assert action(by_time) is RolloutAction.PROMOTE
    assert action(by_time, Verdict(is_bad=False)) is None, "no pair of jobs was compared"
    assert action(LAST, Verdict(is_bad=False, checks=(replace(FINE, num_pairs=4),))) is None, "the step asks for five"
    doubtful = Verdict(is_bad=False, checks=(FINE, LONGER))
    assert action(LAST, doubtful) is None
    assert action(ROLLOUT, doubtful) is RolloutAction.ADVANCE, "a step before the last passes"
    assert action(LAST, replace(doubtful, checks=(FINE, replace(LONGER, decision="good")))) is RolloutAction.PROMOTE
    shorter = replace(LONGER, name="shorter_answers")
    assert action(LAST, replace(doubtful, checks=(FINE, shorter))) is RolloutAction.PROMOTE
    failing = replace(FINE, candidate=0.2)
    assert action(LAST, replace(doubtful, checks=(failing,))) is None


def test_a_bad_verdict_rolls_back_at_any_time() -> None:
    for rollout in (ROLLOUT, LAST, replace(ROLLOUT, state=RolloutState.PAUSED)):
        found = next_transition(rollout, Progress(BEGAN, 0, is_served=False), BAD)
        assert found == Transition(RolloutAction.ROLL_BACK, "the candidate fails more often")


def test_a_pause_does_not_count_as_time_of_the_step() -> None:
    paused = after(ROLLOUT, Transition(RolloutAction.PAUSE, "look"), BEGAN + timedelta(seconds=50))
    assert (paused.state, paused.percent) == (RolloutState.PAUSED, 10)
    resumed = after(paused, Transition(RolloutAction.RESUME, "go on"), BEGAN + timedelta(seconds=500))
    assert action(resumed, now=BEGAN + timedelta(seconds=509)) is None
    assert action(resumed, now=BEGAN + timedelta(seconds=510)) is RolloutAction.ADVANCE


def test_an_ended_rollout_changes_no_more() -> None:
    ended = after(ROLLOUT, Transition(RolloutAction.ABORT, "no"), BEGAN)
    assert (ended.state, ended.percent, ended.ended_at) == (RolloutState.ABORTED, 0, BEGAN)
    with pytest.raises(Conflict, match="aborted") as refused:
        after(ended, Transition(RolloutAction.PROMOTE, "yes"), BEGAN)
    assert refused.value.code == "rollout_ended"


def test_each_action_says_why_and_changes_its_own_fields() -> None:
    later = BEGAN + timedelta(seconds=90)
    progress = Progress(later, 5, is_served=True)
    said = [
        next_transition(rollout, progress, GOOD) for rollout in (ROLLOUT, LAST, replace(LAST, mode=RolloutMode.SHADOW))
    ]
    assert said == [
        Transition(RolloutAction.ADVANCE, Naming("step 1")),
        Transition(RolloutAction.PROMOTE, Naming("last step")),
        Transition(RolloutAction.ABORT, Naming("last step", "shadow")),
    ]
    without_words = next_transition(ROLLOUT, progress, Verdict(is_bad=True))
    assert without_words == Transition(RolloutAction.ROLL_BACK, Naming("candidate is worse"))
    assert [overdue_s(ROLLOUT, Progress(now, 0, is_served=False)) for now in (BEGAN, later)] == [0.0, 30.0]

    def done(rollout: Rollout, action: RolloutAction) -> Rollout:
        return after(rollout, Transition(action, "why"), later)

    noted = replace(ROLLOUT, reason="why", revision=2)
    assert done(ROLLOUT, RolloutAction.ADVANCE) == replace(noted, current_step=1, step_since=later)
    paused = replace(noted, state=RolloutState.PAUSED, paused_at=later)
    assert done(ROLLOUT, RolloutAction.PAUSE) == paused
    assert done(replace(paused, paused_at=BEGAN), RolloutAction.PAUSE).paused_at == BEGAN, "the first pause counts"
    assert done(replace(paused, paused_at=BEGAN), RolloutAction.RESUME) == replace(
        noted, revision=3, step_since=BEGAN + timedelta(seconds=90)
    )
    for action_, state in (
        (RolloutAction.PROMOTE, RolloutState.PROMOTED),
        (RolloutAction.ABORT, RolloutState.ABORTED),
        (RolloutAction.ROLL_BACK, RolloutState.ROLLED_BACK),
    ):
        ended = done(paused, action_)
        assert ended == replace(noted, revision=3, state=state, ended_at=later)
        assert (ended.percent, ended.state.is_active) == (100.0 if state is RolloutState.PROMOTED else 0.0, False)
    with pytest.raises(Conflict) as refused:
        done(replace(ROLLOUT, state=RolloutState.PROMOTED), RolloutAction.ABORT)
    assert refused.value.message == Naming("rollout_1", "promoted")
