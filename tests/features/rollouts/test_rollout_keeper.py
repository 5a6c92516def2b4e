"""The dispatcher's duty for rollouts, with the real judge and jobs whose outcomes are given."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from structlog.testing import capture_logs

from headrace.features.rollouts import moves
from headrace.features.rollouts.changes import NewRollout, start_of_pipeline
from headrace.features.rollouts.matched_pairs import MEASURES
from headrace.features.rollouts.metrics import RolloutMetrics
from headrace.features.rollouts.rollout_keeper import RolloutKeeper
from headrace.features.rollouts.rollouts import Rollout, RolloutState, Step, StickyKey, get_rollout
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs import claims
from headrace.store.jobs.claims import Finish
from headrace.store.keeper import Duty, DutyGroup
from headrace.store.registry import prompt_templates
from headrace.store.registry.models import resolve
from headrace.store.registry.prompt_templates import Kind
from headrace.store.schema.job_states import JobState
from tests.features.rollouts.conftest import StartRollout, begin
from tests.store.conftest import accept_one, make_job, query, tenant
from tests.store.making import AcceptOne, Query

__all__ = ["accept_one", "begin", "make_job", "query", "tenant"]

USAGE = {"input_tokens": 5, "output_tokens": 4, "queue_ms": 1.0, "first_token_ms": 11.0, "compute_ms": 40.0}
FAILED = {"code": "engine_error", "message": "it broke", "retryable": False}


def end(db: Database, job_id: str, version: int, *, fails: bool) -> None:
    claim = claims.claim(db, "worker", f"tiny@{version}", [job_id], 60)[job_id]
    state, error = (JobState.FAILED, FAILED) if fails else (JobState.SUCCEEDED, None)
    output = None if fails else {"text": "done"}
    finish = Finish(
        job_id, claim.epoch, state=state, output=output, error=error, usage=USAGE, tenant_id=claim.tenant_id
    )
    assert claims.finish(db, [finish]) == {job_id}


def run_jobs(db: Database, accept_one: AcceptOne, rollout: Rollout, *, candidate_fails: bool) -> None:
    """Run jobs of both versions, and let them be accepted long enough ago for the judge to read them."""
    for version in (1, 2) * 60:
        values = {"model_version": version, "queue": f"tiny@{version}", "rollout_id": rollout.id}
        end(db, accept_one(**values), version, fails=candidate_fails and version == 2)
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = created_at - interval '10 min'"))
        for column in ("started_at", "step_since"):
            connection.execute(text(f"UPDATE rollouts SET {column} = {column} - interval '11 min'"))


def run_pipeline_jobs(db: Database, accept_one: AcceptOne, rollout: Rollout, *, fails: bool, slower: float) -> None:
    """Run jobs of both versions of a pipeline, as ``run_jobs`` does. ``slower``: the candidate's factor of time."""
    for version in (1, 2) * 60:
        end(db, accept_one(rollout_id=rollout.id, pipeline_version=version), 1, fails=fails and version == 2)
    with db.begin() as connection:
        connection.execute(
            text("""UPDATE jobs SET created_at = created_at - interval '10 min', started_at = completed_at
                - make_interval(secs => CASE pipeline_version WHEN 2 THEN CAST(:slower AS float8) ELSE 1 END)"""),
            {"slower": slower},
        )
        for column in ("started_at", "step_since"):
            connection.execute(text(f"UPDATE rollouts SET {column} = {column} - interval '11 min'"))


def serve(db: Database) -> None:
    presence.beat_worker(db, "worker", "tiny@2", None)
    with db.begin() as connection:
        connection.execute(text("UPDATE worker_processes SET seen_at = now() + interval '1 hour'"))


@pytest.fixture
def keeper(db: Database) -> RolloutKeeper:
    return RolloutKeeper(db, RolloutMetrics(CollectorRegistry()))


def test_a_version_with_errors_is_rolled_back_and_its_queued_jobs_move(
    begin: StartRollout, db: Database, accept_one: AcceptOne, query: Query, keeper: RolloutKeeper
) -> None:
    rollout = begin(steps=[Step(50, hold_s=3600)])
    run_jobs(db, accept_one, rollout, candidate_fails=True)
    waiting = accept_one(model_version=2, queue="tiny@2", rollout_id=rollout.id)
    for _ in range(5):
        keeper.turn()
    ended = get_rollout(db, rollout.id)
    assert ended.state is RolloutState.ROLLED_BACK
    assert ended.reason is not None
    assert ended.reason.startswith("errors:")
    assert ended.evidence["is_bad"]
    assert [entry["percent"] for entry in ended.evidence["history"]]
    assert resolve(db, "tiny").version == 1, "the alias is where it was"
    assert query("SELECT queue FROM jobs WHERE id = :id", id=waiting) == [{"queue": "tiny@1"}]


@pytest.mark.parametrize(
    ("broken", "event"),
    [
        ({"bounds": {"of_a_newer_release": 0.5}}, "rollout.bounds_unreadable"),
        ({"evidence": {"history": 0}}, "duty_failed"),
        ({"state": "rolled_back", "ended_at": "now"}, "duty_failed"),
    ],
    ids=["bounds of another release", "evidence", "moved jobs"],
)
def test_a_rollout_that_fails_stops_no_other(
    broken: dict[str, Any],
    event: str,
    begin: StartRollout,
    db: Database,
    accept_one: AcceptOne,
    keeper: RolloutKeeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollout = begin(steps=[Step(50, hold_s=3600)])
    row = json.dumps({"id": "ro_0", "alias": "other", **broken})
    with db.begin() as connection:
        connection.execute(
            text("INSERT INTO rollouts SELECT (jsonb_populate_record(rollouts, CAST(:row AS jsonb))).* FROM rollouts"),
            {"row": row},
        )
    run_jobs(db, accept_one, rollout, candidate_fails=True)
    before = get_rollout(db, "ro_0").state

    def fail(*_: object) -> int:
        raise Unavailable("a row of its jobs is locked")

    monkeypatch.setattr(moves, "move_queued", fail)
    with capture_logs() as logs:
        DutyGroup([Duty("advance_rollouts", 2.0, keeper.turn)], lambda *_turn: None).run_due()
    assert get_rollout(db, rollout.id).state is RolloutState.ROLLED_BACK
    assert get_rollout(db, "ro_0").state is before
    assert [line.get("part", line.get("rollout")) for line in logs if line["event"] == event] == ["ro_0"]


def test_a_version_like_the_stable_one_goes_through_its_steps_to_the_alias(
    begin: StartRollout, db: Database, accept_one: AcceptOne, keeper: RolloutKeeper
) -> None:
    rollout = begin(steps=[Step(10, hold_s=60, min_jobs=5), Step(50, hold_s=0, min_jobs=1)])
    run_jobs(db, accept_one, rollout, candidate_fails=False)
    keeper.turn()
    assert get_rollout(db, rollout.id).current_step == 0, "no worker serves the candidate"
    serve(db)
    keeper.turn()
    assert get_rollout(db, rollout.id).current_step == 1
    keeper.turn()
    assert get_rollout(db, rollout.id).state is RolloutState.RUNNING, "no job has ended in this step"
    values = {"model_version": 2, "queue": "tiny@2", "rollout_id": rollout.id}
    end(db, accept_one(**values), 2, fails=False)
    keeper.turn()
    assert get_rollout(db, rollout.id).state is RolloutState.PROMOTED
    assert resolve(db, "tiny").version == 2


def test_time_alone_promotes_nothing_and_the_rollout_says_what_it_waits_for(
    begin: StartRollout, db: Database, accept_one: AcceptOne, keeper: RolloutKeeper
) -> None:
    rollout = begin(steps=[Step(50, hold_s=60)])
    serve(db)
    with db.begin() as connection:
        connection.execute(text("UPDATE rollouts SET step_since = step_since - interval '11 min'"))
    keeper.turn()
    waiting = get_rollout(db, rollout.id)
    assert (waiting.state, resolve(db, "tiny").version) == (RolloutState.RUNNING, 1)
    assert waiting.evidence["waits_for"]
    assert waiting.evidence["job_percent"] is None
    run_jobs(db, accept_one, rollout, candidate_fails=False)
    keeper.turn()
    ended = get_rollout(db, rollout.id)
    assert (ended.state, ended.evidence["waits_for"]) == (RolloutState.PROMOTED, None)
    assert ended.evidence["job_percent"] == 50


def test_the_metrics_tell_what_stands_still_until_another_dispatcher_leads(
    begin: StartRollout, db: Database, accept_one: AcceptOne
) -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    keeper = RolloutKeeper(db, metrics)
    rollout = begin(steps=[Step(10, hold_s=600, min_jobs=1000)])

    def shown() -> list[float | None]:
        labels = {"model": rollout.model, "alias": rollout.alias}
        names = ("headrace_rollout_overdue_seconds", "headrace_rollout_undecided_checks")
        return [registry.get_sample_value(name, labels) for name in names]

    keeper.turn()
    assert shown() == [0, len(MEASURES)]
    run_jobs(db, accept_one, rollout, candidate_fails=False)
    keeper.turn()
    overdue_s, undecided = shown()
    assert overdue_s is not None
    assert overdue_s >= 60, "the step began 660 s ago"
    assert undecided is not None
    assert undecided < len(MEASURES)
    metrics.clear()
    assert shown() == [None, None]
    with db.begin() as connection:
        connection.execute(text("UPDATE rollouts SET state = 'paused', paused_at = now()"))
    keeper.turn()
    assert shown() == [None, None], "a paused rollout is not to go on"


@pytest.mark.parametrize(
    ("fails", "slower", "state", "reason"),
    [
        (True, 1.0, RolloutState.ROLLED_BACK, "errors:"),
        (False, 3.0, RolloutState.ROLLED_BACK, "token time:"),
        (False, 1.0, RolloutState.PROMOTED, "the last"),
    ],
    ids=["errors", "slow", "good"],
)
def test_a_version_of_a_pipeline_is_judged_as_one_of_a_model(
    db: Database,
    tenant: str,
    accept_one: AcceptOne,
    query: Query,
    keeper: RolloutKeeper,
    fails: bool,
    slower: float,
    state: RolloutState,
    reason: str,
) -> None:
    template = {"steps": [{"name": "only", "model": "tiny", "input": {"prompt": "x"}}]}
    named = {"template": template, "actor": "tests", "kind": Kind.PIPELINE}
    pipeline = prompt_templates.create(db, tenant, name="digest", **named)
    prompt_templates.add_version(db, tenant, pipeline.id, **named)
    prompt_templates.set_alias(db, tenant, pipeline.id, "default", 1, actor="tests", kind=Kind.PIPELINE)
    new = NewRollout(pipeline.id, 2, [Step(50, hold_s=60, min_jobs=5)], sticky_key=StickyKey.JOB)
    rollout = start_of_pipeline(db, new, "tests", tenant)
    run_pipeline_jobs(db, accept_one, rollout, fails=fails, slower=slower)
    waiting = accept_one(rollout_id=rollout.id, pipeline_version=2)
    keeper.turn()
    keeper.turn()
    ended = get_rollout(db, rollout.id)
    assert (ended.state, str(ended.reason).startswith(reason)) == (state, True), ended.reason
    now = prompt_templates.get(db, tenant, "digest", "default", Kind.PIPELINE)
    assert now.version == (2 if state is RolloutState.PROMOTED else 1)
    kept = query("SELECT queue, pipeline_version FROM jobs WHERE id = :id", id=waiting)
    assert kept == [{"queue": "tiny@1", "pipeline_version": 2}], "an accepted job keeps its version"
