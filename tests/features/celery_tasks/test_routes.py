"""The jobs of Celery tasks over HTTP: one job for an id, and messages that come until they are confirmed."""

import threading
import time
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.celery_tasks import celery_tasks
from headrace.features.retention.retention import Retention, sweep
from headrace.store.db.database import Database
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker

JOB = {"task": "generate", "model": "tiny", "input": {"prompt": "Hello"}}
MESSAGE = {"task": "shop.next", "options": {"link": [1, None]}}


def submit(api: httpx2.Client, task_id: str, **changes: Any) -> httpx2.Response:
    return api.post("/v1/celery/tasks", json={"id": task_id, "message": MESSAGE, "job": JOB} | changes)


def ended(api: httpx2.Client, wait_s: float = 0) -> dict[str, Any]:
    """The messages of ended jobs by their tasks."""
    answer = api.post("/v1/celery/ended", json={"wait_s": wait_s})
    answer.raise_for_status()
    return {task["id"]: task["message"] for task in answer.json()["data"]}


def test_a_message_comes_when_the_job_has_ended_and_again_until_it_is_confirmed(
    api: httpx2.Client, make_client: MakeClient, other_key: str, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_tasks, "AGAIN_S", 0.2)
    stranger = make_client(other_key)
    first = submit(api, "one")
    assert (first.status_code, first.json()["job"]["status"]) == (202, "queued")
    again = submit(api, "one", job=JOB | {"input": {"prompt": "Another"}}, message={})
    assert again.json()["job"]["id"] == first.json()["job"]["id"], "an id has one job"
    theirs = submit(stranger, "one")
    assert theirs.json()["job"]["id"] != first.json()["job"]["id"], "another tenant has other ids"
    submit(api, "two")
    assert ended(api) == {}
    began = time.monotonic()
    threading.Timer(0.5, lambda: worker.succeed(worker.claim(first.json()["job"]["id"]))).start()
    assert ended(api, wait_s=30) == {"one": MESSAGE}
    assert time.monotonic() - began < 15, "it waits for the end and no longer"
    assert ended(api) == {}, "another worker has it now"
    assert ended(api, wait_s=30) == {"one": MESSAGE}
    assert ended(stranger) == {}
    assert stranger.post("/v1/celery/tasks/two/cancel").status_code == 404
    assert stranger.post("/v1/celery/tasks/one/confirm").status_code == 204, "its own task of this id"
    assert ended(api, wait_s=30) == {"one": MESSAGE}, "a stranger confirms nothing"
    for _ in range(2):
        assert api.post("/v1/celery/tasks/one/confirm").status_code == 204
    assert ended(api, wait_s=2) == {}
    assert api.get("/v1/celery/tasks/one").json()["is_confirmed"] is True
    api.post("/v1/celery/tasks/two/cancel").raise_for_status()
    assert ended(api) == {"two": MESSAGE}, "a cancelled job has ended"


def test_what_is_not_confirmed_is_kept_beyond_the_retention_and_a_deletion_ends_it(
    api: httpx2.Client, db: Database, tenant: str, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_tasks, "AGAIN_S", 0.2)
    shortest = Retention(inputs_s=0, outputs_s=0)
    for name in ("one", "deleted"):
        worker.succeed(worker.claim(submit(api, name).json()["job"]["id"]))
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET completed_at = now() - interval '70 s'"))
    assert sweep(db, tenant, shortest, 10).counts["num_outputs"] == 0
    assert ended(api, wait_s=30) == {"one": MESSAGE, "deleted": MESSAGE}
    job = api.get("/v1/celery/tasks/deleted").json()["job"]
    api.delete(f"/v1/jobs/{job['id']}").raise_for_status()
    assert ended(api, wait_s=30) == {"one": MESSAGE}
    assert api.post("/v1/celery/tasks/deleted/confirm").status_code == 410, "the app deletes its result too"
    assert api.get("/v1/celery/tasks/one").json()["job"]["output"] is not None
    api.post("/v1/celery/tasks/one/confirm").raise_for_status()
    assert sweep(db, tenant, shortest, 10).counts["num_outputs"] == 1


def test_what_cannot_be_a_task_is_refused_and_stores_nothing(api: httpx2.Client) -> None:
    refused = [
        submit(api, "", job=JOB),
        submit(api, "a b"),
        submit(api, "large", message={"args": "x" * (256 << 10)}),
        submit(api, "unknown", job=JOB | {"model": "nonesuch"}),
        submit(api, "wrong", job=JOB | {"colour": "red"}),
    ]
    assert [answer.status_code for answer in refused] == [400, 400, 400, 404, 400]
    assert api.get("/v1/jobs").json()["data"] == []
    assert api.get("/v1/celery/tasks/large").json()["error"]["code"] == "not_found"
