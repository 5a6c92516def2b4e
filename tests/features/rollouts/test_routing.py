"""Which side of a rollout a job is on."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from headrace.features.rollouts.rollouts import RolloutMode, RolloutState, Step, StickyKey
from headrace.features.rollouts.routing import point_of, takes_candidate
from tests.features.rollouts.test_transitions import ROLLOUT

USERS = [f"user-{number}" for number in range(2000)]


def chosen(percent: float, rollout_id: str = "rollout_1") -> set[str]:
    rollout = replace(ROLLOUT, id=rollout_id, steps=(Step(percent, hold_s=1),))
    return {user for user in USERS if takes_candidate(rollout, "t", user, None)}


def test_a_growing_percentage_only_adds_keys() -> None:
    sides = [chosen(percent) for percent in (1, 10, 50, 100)]
    assert all(smaller < larger for smaller, larger in pairwise(sides))
    assert sides[-1] == set(USERS)
    assert 0.4 < len(sides[2]) / len(USERS) < 0.6
    assert chosen(50, "rollout_2") != sides[2], "another rollout divides in another way"


def test_a_job_without_the_sticky_key_is_divided_by_the_next_one() -> None:
    by_conversation = replace(ROLLOUT, sticky_key=StickyKey.CONVERSATION, steps=(Step(50, hold_s=1),))
    by_user = replace(by_conversation, sticky_key=StickyKey.USER)
    by_tenant = replace(by_conversation, sticky_key=StickyKey.TENANT)
    for user in USERS[:50]:
        assert takes_candidate(by_conversation, "t", user, None) == takes_candidate(by_user, "t", user, "c")
        assert takes_candidate(by_user, "t", None, None) == takes_candidate(by_tenant, "t", user, None)
    assert len({takes_candidate(by_conversation, "t", "u", f"c{number}") for number in range(50)}) == 2
    assert len({takes_candidate(by_user, f"t{number}", "u", None) for number in range(50)}) == 2, "of two tenants"


def test_jobs_stand_alone_but_for_their_conversation() -> None:
    by_job = replace(ROLLOUT, sticky_key=StickyKey.JOB, steps=(Step(50, hold_s=1),))
    alone = [takes_candidate(by_job, "t", "u", None, f"draw-{number}") for number in range(2000)]
    assert 0.4 < sum(alone) / len(alone) < 0.6, "jobs of one user"
    for conversation in USERS[:50]:
        assert len({takes_candidate(by_job, "t", "u", conversation, f"draw-{number}") for number in range(9)}) == 1


def test_a_shadow_and_an_ended_rollout_divide_nothing() -> None:
    everything = replace(ROLLOUT, steps=(Step(100, hold_s=1),))
    assert takes_candidate(everything, "t", None, None)
    assert not takes_candidate(replace(everything, mode=RolloutMode.SHADOW), "t", None, None)
    assert not takes_candidate(replace(everything, state=RolloutState.ROLLED_BACK), "t", None, None)


def test_a_key_keeps_its_point_over_releases_and_keys_of_tenants_differ() -> None:
    points = [round(point_of("rollout_1", key), 6) for key in ("user t u", "tenant t", "user t2 u")]
    assert points == [20.644777, 50.367147, 60.951362]

    def takes(percent: float, **changes: object) -> bool:
        fields: Any = changes.pop("rollout", {})
        asked: Any = {"user": "u", "conversation": None} | changes
        return takes_candidate(replace(ROLLOUT, steps=(Step(percent, hold_s=1),), **fields), "t", **asked)

    cases: list[tuple[str, dict[str, Any]]] = [
        ("user t u", {}),
        ("tenant t", {"user": None}),
        ("tenant t", {"rollout": {"sticky_key": StickyKey.JOB}}),
        ("conversation t c", {"rollout": {"sticky_key": StickyKey.JOB}, "conversation": "c"}),
    ]
    for key, changes in cases:
        point = point_of("rollout_1", key)
        assert not takes(point, **changes), "the keys below the percentage"
        assert takes(point + 1e-9, **changes)
    assert takes(100.0, rollout={"state": RolloutState.PAUSED})
