"""Starting rollouts, ending them, and what they refuse meanwhile."""

from typing import Any

import pytest

from store.db import presence
from store.db.database import Database
from store.errors import Conflict, HeadraceError, PreconditionFailed
from store.registry import versions
from store.registry.models import resolve
from store.rollouts.changes import change
from store.rollouts.rollouts import RolloutState, Step, active_rollouts, get_rollout, list_rollouts
from store.rollouts.transitions import RolloutAction, Transition
from tests.store.making import Query
from tests.store.registry.test_models import register
from tests.store.rollouts.conftest import StartRollout

STOP = Transition(RolloutAction.ABORT, "enough")


def code_of(run: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(HeadraceError) as refused:
        run(*arguments, **named)
    return refused.value.code


def test_an_alias_has_one_active_rollout_and_is_not_moved_by_hand(begin: StartRollout, db: Database) -> None:
    rollout = begin()
    assert get_rollout(db, rollout.id) == rollout
    assert (rollout.stable_version, rollout.candidate_version, rollout.percent) == (1, 2, 10)
    assert code_of(begin) == "rollout_active"
    assert code_of(versions.set_alias, db, "tiny", "default", 2, "tests") == "rollout_active"
    assert code_of(versions.retire, db, "tiny", 2, "tests") == "rollout_active"
    versions.set_alias(db, "tiny", "other", 1, "tests")
    assert begin(alias="other").id != rollout.id, "another alias"
    change(db, rollout.id, STOP, "tests")
    versions.set_alias(db, "tiny", "default", 2, "tests")
    assert [one.state for one in list_rollouts(db)] == [RolloutState.RUNNING, RolloutState.ABORTED]
    assert list(active_rollouts(db)) == [("tiny", "other")]


def test_what_cannot_become_the_alias_version_is_refused_before_anything_is_stored(
    begin: StartRollout, db: Database
) -> None:
    register(db, digest="d3")
    versions.retire(db, "tiny", 3, "tests")
    refusals = {
        "model_not_found": {"candidate": 3},
        "rollout_not_needed": {"candidate": 1},
        "alias_not_found": {"alias": "nowhere"},
        "no_worker": {"require_worker": True},
    }
    for code, changes in refusals.items():
        assert code_of(begin, **changes) == code
    for steps in ([], [Step(0, hold_s=1)], [Step(50, hold_s=1), Step(50, hold_s=1)], [Step(101, hold_s=1)], [Step(5)]):
        assert code_of(begin, steps=steps) == "invalid_value"
    assert list_rollouts(db) == []
    presence.beat_worker(db, "worker", "tiny@2", None)
    assert begin(require_worker=True).state is RolloutState.RUNNING


def test_a_promotion_moves_the_alias_and_a_stale_revision_changes_nothing(
    begin: StartRollout, db: Database, query: Query
) -> None:
    rollout = begin()
    paused = change(db, rollout.id, Transition(RolloutAction.PAUSE, "look"), "tests", expected=1)
    with pytest.raises(PreconditionFailed, match="revision 1"):
        change(db, rollout.id, STOP, "tests", expected=1)
    assert get_rollout(db, rollout.id) == paused
    promoted = change(db, rollout.id, Transition(RolloutAction.PROMOTE, "good"), "tests", expected=2)
    assert (promoted.state, promoted.percent, resolve(db, "tiny").version) == (RolloutState.PROMOTED, 100, 2)
    with pytest.raises(Conflict, match="promoted"):
        change(db, rollout.id, STOP, "tests")
    actions = query("SELECT action FROM audit_log WHERE action LIKE 'rollout.%' ORDER BY id")
    assert [row["action"] for row in actions] == ["rollout.started", "rollout.paused", "rollout.promoted"]


def test_a_version_that_was_rolled_back_needs_force(begin: StartRollout, db: Database) -> None:
    rollout = begin()
    change(db, rollout.id, Transition(RolloutAction.ROLL_BACK, "worse"), "dispatcher")
    assert resolve(db, "tiny").version == 1
    assert code_of(versions.set_alias, db, "tiny", "default", 2, "tests") == "version_rolled_back"
    assert code_of(begin) == "version_rolled_back"
    change(db, begin(force=True).id, STOP, "tests")
    versions.set_alias(db, "tiny", "default", 2, "tests", force=True)
    assert resolve(db, "tiny").version == 2
