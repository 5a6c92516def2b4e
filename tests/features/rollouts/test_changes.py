"""Starting rollouts, ending them, and what they refuse meanwhile."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.rollouts.changes import change, check_steps, note_evidence
from headrace.features.rollouts.progress import read_progress
from headrace.features.rollouts.rollouts import (
    RolloutKind,
    RolloutMode,
    RolloutState,
    Step,
    StickyKey,
    active_rollout,
    active_rollouts,
    get_rollout,
    list_rollouts,
    rollouts_under_way,
)
from headrace.features.rollouts.transitions import RolloutAction, Transition
from headrace.store.audit_log import list_entries
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, HeadraceError, InvalidRequest, PreconditionFailed
from headrace.store.registry import versions
from headrace.store.registry.models import resolve
from tests.features.rollouts.conftest import StartRollout
from tests.refusals import Naming
from tests.store.making import AcceptOne, Query
from tests.store.registry.test_models import register

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
    change(db, rollout.id, Transition(RolloutAction.PAUSE, "look"), "tests")
    assert code_of(begin) == "rollout_active", "it is paused"
    assert code_of(versions.set_alias, db, "tiny", "default", 2, "tests") == "rollout_active"
    for digest in ("d1", "d2"):
        register(db, model="beside", digest=digest)
    for version in (2, 1):
        versions.set_alias(db, "beside", "default", version, "tests")
    versions.retire(db, "beside", 2, "tests")
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
    for digest in ("d1", "d2"):
        register(db, model="beside", digest=digest)
    versions.set_alias(db, "beside", "default", 2, "tests")
    change(db, begin(force=True).id, STOP, "tests")
    versions.set_alias(db, "tiny", "default", 2, "tests", force=True)
    assert resolve(db, "tiny").version == 2


def message_of(run: Any, *arguments: Any, **named: Any) -> tuple[str, str | None]:
    with pytest.raises(HeadraceError) as refused:
        run(*arguments, **named)
    return refused.value.message, refused.value.param


def test_refusals_of_rollouts_say_what_to_do(begin: StartRollout, db: Database) -> None:
    first = begin()
    embedder = register(db, model="embedder", runner="fake-encoder")
    assert embedder.task == "embed"
    assert message_of(begin) == (Naming("tiny@default", "active rollout"), None)
    change(db, first.id, STOP, "tests")
    for changes, said in (
        ({"candidate": 1}, (Naming("tiny@default names version 1"), None)),
        ({"alias": "nowhere"}, (Naming("'nowhere'"), "alias")),
        (
            {"require_worker": True},
            (Naming("`headrace worker --model tiny@2`"), "version"),
        ),
    ):
        assert message_of(begin, **changes) == said
    assert message_of(get_rollout, db, "rollout_x") == (Naming("'rollout_x'"), "rollout")
    assert message_of(change, db, "rollout_x", STOP, "tests") == (Naming("'rollout_x'"), "rollout")
    second = begin()
    assert message_of(change, db, second.id, STOP, "tests", expected=7) == (
        Naming(second.id, "revision 7"),
        None,
    )


def test_steps_grow_and_hold_for_something() -> None:
    check_steps([Step(0.5, hold_s=1), *(Step(1 + n, min_jobs=1) for n in range(48)), Step(100, hold_s=1)])
    grows = Naming("percentage", " 0 to 100")
    holds = Naming("time", "number of jobs")
    for steps, said in (
        ([], Naming("1 to 50 steps")),
        ([Step(n + 1, hold_s=1) for n in range(51)], Naming("1 to 50 steps")),
        ([Step(0, hold_s=1)], grows),
        ([Step(100.5, hold_s=1)], grows),
        ([Step(5, hold_s=1), Step(5, hold_s=1)], grows),
        ([Step(5)], holds),
        ([Step(5, hold_s=-1, min_jobs=1)], holds),
        ([Step(5, hold_s=1, min_jobs=-1)], holds),
    ):
        with pytest.raises(InvalidRequest) as refused:
            check_steps(steps)
        assert (refused.value.message, refused.value.param) == (said, "steps")


def test_a_rollout_is_what_was_started_and_each_change_is_on_record(
    begin: StartRollout, db: Database, tenant: str
) -> None:
    rollout = begin(mode=RolloutMode.SHADOW, sticky_key=StickyKey.TENANT, bounds={"errors": 0.25})
    assert (rollout.model, rollout.kind, rollout.alias, rollout.mode) == (
        "tiny",
        RolloutKind.MODEL,
        "default",
        RolloutMode.SHADOW,
    )
    assert (rollout.sticky_key, rollout.bounds, rollout.state, rollout.started_by) == (
        StickyKey.TENANT,
        {"errors": 0.25},
        RolloutState.RUNNING,
        "tests",
    )
    assert (rollout.steps, rollout.current_step, rollout.revision, rollout.reason, rollout.ended_at) == (
        (Step(10, hold_s=60), Step(50, hold_s=60, min_jobs=5)),
        0,
        1,
        None,
        None,
    )
    advanced = change(db, rollout.id, Transition(RolloutAction.ADVANCE, "go"), "mia", tenant_id=tenant)
    assert (get_rollout(db, rollout.id), advanced.step_since > rollout.step_since) == (advanced, True)
    (entry, *_) = list_entries(db, tenant)
    assert (entry.actor, entry.action, entry.resource, entry.detail) == (
        "mia",
        "rollout.advanced",
        rollout.id,
        {"alias": "tiny@default", "stable": 1, "candidate": 2, "state": "running", "step": 1},
    )


def test_rollouts_are_listed_while_they_are_active_or_may_have_jobs(
    begin: StartRollout, db: Database, query: Query
) -> None:
    rollout = begin(mode=RolloutMode.SHADOW)
    change(db, rollout.id, Transition(RolloutAction.ADVANCE, "go"), "mia")
    note_evidence(db, rollout, {"at": 5})
    assert get_rollout(db, rollout.id).evidence == {"at": 5}
    found = active_rollout(db, "tiny", "default")
    assert found is not None
    assert (found.id, found.current_step, found.evidence) == (rollout.id, 1, {}), "without its evidence"
    assert active_rollout(db, "tiny", "other") is None
    assert active_rollouts(db) == {("tiny", "default"): found}
    assert [one.evidence for one in rollouts_under_way(db)] == [{"at": 5}]
    ended = change(db, rollout.id, STOP, "tests")
    assert (ended.reason, ended.revision) == ("enough", 3)
    assert (active_rollout(db, "tiny", "default"), active_rollouts(db)) == (None, {})
    assert [(one.id, one.evidence) for one in rollouts_under_way(db)] == [(rollout.id, {})], "it may have queued jobs"
    later = begin(alias="default")
    assert [one.id for one in list_rollouts(db)] == [later.id, rollout.id]
    assert [one.id for one in list_rollouts(db, limit=1)] == [later.id]
    assert [one.id for one in list_rollouts(db, is_active=True)] == [later.id]
    assert (list_rollouts(db, "other"), list_rollouts(db, kind=RolloutKind.PIPELINE)) == ([], [])
    query("UPDATE rollouts SET ended_at = now() - interval '8 days' WHERE id = :id", id=rollout.id)
    assert [one.id for one in rollouts_under_way(db)] == [later.id]
    change(db, later.id, Transition(RolloutAction.PROMOTE, "good"), "tests")
    assert rollouts_under_way(db) == [], "a promotion leaves no jobs to move"


def test_the_progress_of_a_step_is_of_the_candidates_jobs_since_it_began(
    begin: StartRollout, db: Database, accept_one: AcceptOne, query: Query
) -> None:
    rollout = begin(steps=[Step(10, min_jobs=2), Step(50, min_jobs=9)])
    ended = [accept_one(model_version=2, queue="tiny@2", rollout_id=rollout.id) for _ in range(4)]
    others = [accept_one(rollout_id=rollout.id), accept_one(model_version=2, queue="tiny@2")]
    query("UPDATE jobs SET completed_at = now() + interval '1 minute' WHERE id = ANY(:ids)", ids=[*ended, *others])
    query("UPDATE jobs SET completed_at = now() - interval '1 day' WHERE id = :id", id=ended[0])

    def progress(step: int) -> tuple[int, bool]:
        with db.autocommit() as connection:
            found = read_progress(connection, replace(rollout, current_step=step))
        return found.num_in_step, found.is_served

    assert (progress(0), progress(1)) == ((2, False), (3, False)), "counted only as far as the step needs it"
    presence.beat_worker(db, "worker", "tiny@1", None)
    assert not progress(1)[1]
    presence.beat_worker(db, "candidate", "tiny@2", None)
    query("UPDATE worker_processes SET seen_at = now() + interval '10 minutes'")  # a busy machine may be slow
    assert progress(1)[1]
    query("UPDATE worker_processes SET seen_at = now() - interval '1 hour'")
    assert not progress(1)[1], "it is gone"
