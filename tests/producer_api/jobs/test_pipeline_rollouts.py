"""Rollouts of pipelines over HTTP: which version takes a job, what is refused meanwhile, and the ends."""

from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from tests.cases import some_of
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.jobs.test_pipelines import ONE, digest, submit
from tests.producer_api.scripted_worker import ScriptedWorker

__all__ = ["digest"]

USERS = [f"user {number}" for number in range(16)]


@pytest.fixture
def rollout(api: httpx2.Client, digest: str) -> str:
    """The path of a rollout of the alias `default`, from version 1 to version 2: half of the users."""
    assert api.put(f"{digest}/aliases/default", json={"version": 1}).status_code == 200
    started = start(api, digest)
    assert started.status_code == 201, started.text
    return f"{digest}/rollouts/{started.json()['id']}"


def start(api: httpx2.Client, digest: str, **changes: Any) -> httpx2.Response:
    body = {"version": 2, "steps": [{"percent": 50, "hold_s": 3600}], **changes}
    return api.post(f"{digest}/rollouts", json=body)


def versions(api: httpx2.Client) -> list[int]:
    return [submit(api, user=user)["pipeline"]["version"] for user in USERS]


def test_a_rollout_divides_the_users_until_it_is_promoted(
    api: httpx2.Client, db: Database, digest: str, rollout: str
) -> None:
    divided = versions(api)
    assert {*divided} == {1, 2}
    assert versions(api) == divided, "a user stays on one side"
    assert submit(api, "digest@1", user=USERS[divided.index(2)])["pipeline"]["version"] == 1
    with db.begin() as connection:
        found = connection.execute(
            text("""SELECT DISTINCT task, rollout_id IS NOT NULL AS is_routed, pipeline_version FROM jobs
                ORDER BY 1, 2, 3""")
        ).all()
    of_number = ("flow", False, 1)
    assert [tuple(row) for row in found] == [
        of_number,
        ("flow", True, 1),
        ("flow", True, 2),
        ("generate", False, None),
    ], "the judge counts jobs, not their steps"
    paused = api.post(f"{rollout}/pause", params={"reason": "lunch"}).json()
    assert (paused["kind"], paused["state"], paused["reason"]) == ("pipeline", "paused", "lunch")
    assert versions(api) == divided, "a pause keeps the percentage"
    late = api.post(f"{rollout}/promote", headers={"If-Match": '"1"'})
    assert (late.status_code, error_of(late)["code"]) == (412, "rollout_changed")
    assert api.post(f"{rollout}/promote").json()["state"] == "promoted"
    assert {*versions(api)} == {2}
    assert api.get(digest, params={"version": "default"}).json()["version"] == 2
    assert [one["state"] for one in api.get(f"{digest}/rollouts").json()["data"]] == ["promoted"]


def test_a_repeated_request_keeps_its_version_through_the_ends_of_a_rollout(
    api: httpx2.Client, digest: str, rollout: str
) -> None:
    def send() -> list[tuple[str, int]]:
        bodies = [{"pipeline": "digest", "input": {"text": "x"}, "user": user} for user in USERS]
        answers = [api.post("/v1/jobs", json=body, headers={"Idempotency-Key": body["user"]}).json() for body in bodies]
        return [(job["id"], job["pipeline"]["version"]) for job in answers]

    first = send()
    assert {version for _, version in first} == {1, 2}
    assert api.post(f"{rollout}/abort").json()["state"] == "aborted"
    assert send() == first
    assert {*versions(api)} == {1}, "new jobs get the stable version"


def test_a_job_of_the_candidate_keeps_its_steps_when_a_worker_is_lost_and_the_rollout_ends(
    api: httpx2.Client, worker: ScriptedWorker, digest: str, rollout: str
) -> None:
    made = next(job for user in USERS if (job := submit(api, user=user))["pipeline"]["version"] == 2)
    first, second = (step["job_id"] for step in api.get(f"/v1/jobs/{made['id']}").json()["steps"])
    worker.hand_back(worker.claim(first), charge=True)
    assert api.post(f"{rollout}/abort").json()["state"] == "aborted"
    for step in (first, second):
        attempt = worker.claim(step)
        worker.say(attempt, "said")
        worker.succeed(attempt)
    job = api.get(f"/v1/jobs/{made['id']}").json()
    assert (job["status"], job["pipeline"]["version"], len(job["steps"])) == ("succeeded", 2, 2)
    assert job["steps"][0]["attempt"] == 2, "the step ran twice, for the same version"


def test_the_alias_and_the_pipeline_stay_while_a_rollout_runs(
    api: httpx2.Client, make_client: MakeClient, other_key: str, digest: str, rollout: str
) -> None:
    refused = [
        api.put(f"{digest}/aliases/default", json={"version": 2}),
        api.delete(f"{digest}/aliases/default"),
        api.delete(digest),
        start(api, digest),
    ]
    assert {(one.status_code, error_of(one)["code"]) for one in refused} == {(409, "rollout_active")}
    other = make_client(other_key)
    hidden = [other.get(rollout), other.post(f"{rollout}/abort"), other.get(f"{digest}/rollouts"), start(other, digest)]
    assert {one.status_code for one in hidden} == {404}
    assert api.post("/v1/pipelines", json={"name": "other", **ONE}).status_code == 201
    elsewhere = rollout.replace(digest, "/v1/pipelines/other")
    of_other = [api.get(elsewhere), api.post(f"{elsewhere}/abort")]
    assert {(one.status_code, error_of(one)["code"]) for one in of_other} == {(404, "rollout_not_found")}
    assert api.put(f"{digest}/aliases/stable", json={"version": 1}).status_code == 200
    assert api.get(rollout).json()["state"] == "running"


@some_of(
    2,
    ("changes", "code"),
    [
        ({"version": 1}, "rollout_not_needed"),
        ({"version": 9}, "not_found"),
        ({"alias": "beta"}, "invalid_value"),
        ({"alias": "tried"}, "rollout_active"),
        ({"steps": [{"percent": 50, "hold_s": 1}, {"percent": 10, "hold_s": 1}]}, "invalid_value"),
    ],
)
def test_a_rollout_with_a_mistake_is_refused(
    api: httpx2.Client, digest: str, changes: dict[str, Any], code: str
) -> None:
    assert api.put(f"{digest}/aliases/default", json={"version": 1}).status_code == 200
    tried = {"version": 1, "canary": {"version": 2, "percent": 10}}
    assert api.put(f"{digest}/aliases/tried", json=tried).status_code == 200
    refused = start(api, digest, **changes)
    assert error_of(refused)["code"] == code, refused.text
    assert api.get(f"{digest}/rollouts").json()["data"] == []
