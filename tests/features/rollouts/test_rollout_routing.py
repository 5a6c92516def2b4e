"""Jobs of an alias with an active rollout: which version takes them, and what is stored for a way back."""

from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.rollouts.changes import NewRollout, change, start
from headrace.features.rollouts.rollouts import Rollout, Step, StickyKey
from headrace.features.rollouts.routing import takes_candidate
from headrace.features.rollouts.transitions import RolloutAction, Transition
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion, register_version
from tests.processes import wait_for
from tests.producer_api.calling import PROMPT, error_of
from tests.producer_api.serving import ApiServer

USERS = [f"user-{number}" for number in range(12)]


def candidate_of(db: Database, model: ModelVersion, context_window: int = 512) -> ModelVersion:
    return register_version(
        db,
        model=model.model,
        runner="fake",
        source="fake:tiny",
        digest="2" * 64,
        dtype="float32",
        context_window=context_window,
        files={},
        actor="tests",
    )


def serve(db: Database, server: ApiServer) -> None:
    """Record a live worker of the candidate, for as long as the test takes, and wait until the API knows it."""
    presence.beat_worker(db, "worker", "tiny@2", None)
    with db.begin() as connection:
        connection.execute(text("UPDATE worker_processes SET seen_at = now() + interval '1 hour'"))
    wait_for(lambda: not server.runtime.live_processes.is_unserved("tiny@2"), "the API knows the worker")


def begin(db: Database, percent: float) -> Rollout:
    new = NewRollout("tiny", 2, [Step(percent, hold_s=3600)], sticky_key=StickyKey.USER)
    return start(db, new, "tests")


def submit(api: httpx2.Client, headers: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    answer = api.post("/v1/jobs", json={**PROMPT, **changes}, headers=headers or {})
    answer.raise_for_status()
    return answer.json()


def test_a_user_stays_on_one_side_and_a_version_that_is_named_is_not_divided(
    db: Database, model: ModelVersion, tenant: str, server: ApiServer, api: httpx2.Client
) -> None:
    candidate_of(db, model)
    serve(db, server)
    rollout = begin(db, 50)
    expected = {user: 2 if takes_candidate(rollout, tenant, user, None) else 1 for user in USERS}
    assert set(expected.values()) == {1, 2}, "otherwise the test shows nothing"
    for _ in range(2):
        assert {user: submit(api, user=user)["model_version"] for user in USERS} == expected
    on_candidate = next(user for user, version in expected.items() if version == 2)
    key = {"Idempotency-Key": "once"}
    first = submit(api, key, user=on_candidate)
    assert submit(api, user=on_candidate, model="tiny@1")["model_version"] == 1
    with db.begin() as connection:
        routed = connection.execute(text("SELECT count(*) FROM jobs WHERE rollout_id = :id"), {"id": rollout.id})
        assert routed.scalar_one() == 2 * len(USERS) + 1, "of both sides, and none that names its version"
    change(db, rollout.id, Transition(RolloutAction.ABORT, "enough"), "tests")
    wait_for(lambda: submit(api, user=on_candidate)["model_version"] == 1, "new jobs go to the stable version")
    assert submit(api, key, user=on_candidate)["model_version"] == 2, "a replay is the first job"
    assert submit(api, key, user=on_candidate)["id"] == first["id"]


@pytest.mark.parametrize("window", [64, 1024])
def test_a_candidate_takes_what_both_versions_take(
    db: Database, model: ModelVersion, server: ApiServer, api: httpx2.Client, window: int
) -> None:
    candidate_of(db, model, window)
    serve(db, server)
    begin(db, 100)
    job = submit(api, sampling={})
    assert job["model_version"] == 2
    with db.begin() as connection:
        (row,) = connection.execute(
            text("""SELECT jobs.input_tokens, (jobs.payload #>> '{}')::json AS payload,
                (f.payload #>> '{}')::json AS other FROM jobs JOIN job_fallbacks AS f ON job_id = id""")
        )
    num_tokens = row.input_tokens
    assert row.payload["sampling"]["max_tokens"] == window - num_tokens
    assert row.other["sampling"]["max_tokens"] == model.context_window - num_tokens
    long = {"input": {"prompt": "x" * 100}}
    if window < model.context_window:
        assert submit(api, **long)["model_version"] == 1, "only the stable version can take it"
    else:
        refused = api.post("/v1/jobs", json={**PROMPT, "input": {"prompt": "x" * 600}})
        assert error_of(refused)["code"] == "context_length_exceeded", "it could not be moved back"


def test_without_a_worker_of_the_candidate_nobody_waits_for_it(
    db: Database, model: ModelVersion, server: ApiServer, api: httpx2.Client
) -> None:
    candidate_of(db, model)
    begin(db, 100)
    assert submit(api)["model_version"] == 1
    serve(db, server)
    assert submit(api)["model_version"] == 2
