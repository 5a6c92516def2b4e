"""Rollouts as they are started and as they are shown."""

from dataclasses import replace
from typing import Any

from headrace.producer_api.jobs.rollout_views import RolloutRequest, new_rollout, rollout_object, rollout_summary
from headrace.store.rollouts.changes import NewRollout
from headrace.store.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, RolloutState, Step, StickyKey
from tests.producer_api.jobs.start_time import at

ROLLOUT = Rollout(
    id="rollout_1",
    model="tiny",
    kind=RolloutKind.MODEL,
    alias="stable",
    stable_version=1,
    candidate_version=2,
    mode=RolloutMode.CANARY,
    sticky_key=StickyKey.TENANT,
    steps=(Step(1.0, 600.0, 0), Step(50.0, 0.0, 5)),
    bounds={},
    state=RolloutState.RUNNING,
    current_step=1,
    step_since=at(1),
    started_at=at(2),
    started_by="key_1",
    paused_at=None,
    ended_at=at(3),
    reason="why",
    evidence={},
    revision=4,
)


def test_a_rollout_is_shown_whole() -> None:
    shown = rollout_summary(ROLLOUT).model_dump(mode="json")
    warning = shown.pop("warning")
    assert "`tenant`" in warning
    default_bounds: Any = RolloutRequest.model_fields["bounds"].default_factory
    assert shown.pop("bounds").keys() == default_bounds().model_dump().keys()
    assert shown == {
        "id": "rollout_1",
        "object": "rollout",
        "model": "tiny",
        "kind": "model",
        "alias": "stable",
        "stable_version": 1,
        "candidate_version": 2,
        "mode": "canary",
        "sticky_key": "tenant",
        "steps": [
            {"percent": 1.0, "hold_s": 600.0, "min_jobs": 0},
            {"percent": 50.0, "hold_s": 0.0, "min_jobs": 5},
        ],
        "state": "running",
        "current_step": 1,
        "percent": 50.0,
        "step_since": 1_800_000_001,
        "started_at": 1_800_000_002,
        "started_by": "key_1",
        "ended_at": 1_800_000_003,
        "reason": "why",
        "revision": 4,
    }
    for other in (replace(ROLLOUT, mode=RolloutMode.SHADOW), replace(ROLLOUT, sticky_key=StickyKey.USER)):
        assert rollout_summary(other).warning is None
    check = {"name": "errors", "stable": 0.1, "candidate": 0.2, "bound": 0.3, "num_pairs": 4, "log_e": 0.5}
    check |= {"needed": 2.0, "decision": "good", "text": "fine"}
    judged = rollout_object(replace(ROLLOUT, evidence={"checks": [check], "at": 7}))
    assert ([one.model_dump() for one in judged.checks], judged.judged_at) == ([check], 7)
    assert (rollout_object(ROLLOUT).checks, rollout_object(ROLLOUT).judged_at) == ([], None)


def test_a_rollout_is_started_on_the_terms_of_the_body() -> None:
    step = {"percent": 1, "hold_s": 600, "min_jobs": 7}
    body = RolloutRequest.model_validate(
        {"model": "tiny", "version": 3, "steps": [step], "mode": "shadow", "force": True}
    )
    made = new_rollout(body, model="tiny", alias="stable", sticky_key=StickyKey.JOB, require_worker=True)
    assert made == NewRollout(
        model="tiny",
        candidate=3,
        steps=[Step(1.0, 600.0, 7)],
        alias="stable",
        mode=RolloutMode.SHADOW,
        sticky_key=StickyKey.JOB,
        bounds={},
        force=True,
        require_worker=True,
    )
    defaults = RolloutRequest.model_validate({"model": "tiny", "version": 3, "steps": [{"percent": 1}]})
    assert (defaults.alias, defaults.sticky_key, defaults.mode, defaults.force) == ("default", "user", "canary", False)
    assert defaults.require_worker is None
