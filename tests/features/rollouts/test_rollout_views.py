"""Rollouts as they are started and as they are shown."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.rollouts import changes, routes
from headrace.features.rollouts.changes import NewRollout
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, RolloutState, Step, StickyKey
from headrace.features.rollouts.transitions import RolloutAction
from headrace.features.rollouts.views import RolloutRequest, new_rollout, rollout_object, rollout_summary
from headrace.store.errors import HeadraceError, NotFound
from headrace.store.tenants.api_keys import Principal
from tests.producer_api.jobs.start_time import at
from tests.refusals import Naming
from tests.stand_ins import stand_in

PRINCIPAL = Principal("acme", "key_1", frozenset())

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


@pytest.mark.parametrize(
    ("reason", "if_match", "expected"),
    [(None, None, ("paused by key_1", None)), ("look", '"7"', ("look", 7)), ("look", "*", None)],
)
async def test_a_rollout_is_changed_on_a_condition(
    monkeypatch: pytest.MonkeyPatch, reason: str | None, if_match: str | None, expected: tuple[str, int | None] | None
) -> None:
    asked: list[Any] = []

    def change(_db: object, rollout_id: str, transition: Any, actor: str, **named: Any) -> Any:
        asked.append((rollout_id, transition.action.value, transition.reason, actor, named))
        raise NotFound("enough")

    monkeypatch.setattr(changes, "change", change)
    action = RolloutAction.PAUSE
    with pytest.raises(HeadraceError) as caught:
        await routes.changed(stand_in(db=None), PRINCIPAL, "rollout_1", action, reason, if_match)
    if expected is None:
        assert (caught.value.message, caught.value.param) == (Naming("revision"), "If-Match")
        return
    text, revision = expected
    named = {"expected": revision, "tenant_id": "acme"}
    assert asked == [("rollout_1", action.value, text, "key_1", named)]
