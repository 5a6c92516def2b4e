"""Jobs, jobs of steps and batches that start later, on a server with a dispatcher and a scripted worker."""

import json
import math
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.workers.dispatcher.dispatcher import Dispatcher
from tests.processes import wait_for
from tests.producer_api.calling import CHAT, PROMPT, error_of
from tests.producer_api.scripted_worker import ScriptedWorker

STEP = {"name": "one", "model": "tiny", "input": {"prompt": "hello"}, "sampling": {"max_tokens": 8}}
AFTER = {"name": "two", "model": "tiny", "needs": ["one"], "input": {"prompt": {"$from": "one.output.text"}}}
FLOW = {"steps": [STEP, AFTER | {"sampling": {"max_tokens": 8}}]}


@pytest.fixture
def _dispatcher(settings: Settings) -> Iterator[None]:
    dispatcher = Dispatcher(settings.model_copy(update={"dispatcher_port": 0}))
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    yield
    dispatcher.stop()
    thread.join(30)
    dispatcher.close()


def later(seconds: float) -> int:
    return math.ceil(datetime.now(UTC).timestamp() + seconds)


@pytest.mark.parametrize("body", [PROMPT, FLOW])
@pytest.mark.usefixtures("_dispatcher")
def test_a_job_starts_when_its_time_has_come_and_not_before(
    api: httpx2.Client, worker: ScriptedWorker, body: dict[str, object]
) -> None:
    at = later(3)
    job = api.post("/v1/jobs", json={**body, "start_after": at, "deadline_ms": 60_000}).json()
    assert (job["status"], job["start_after"], job["expires_at"]) == ("queued", at, at + 60)
    tomorrow = api.post("/v1/jobs", json={**body, "start_after": later(86_400)}).json()["id"]
    with worker.serve(lambda _: ["done"]):
        ended = wait_for(lambda: (found := api.get(f"/v1/jobs/{job['id']}").json())["status"] == "succeeded" and found)
        assert at <= ended["started_at"] <= at + 20
        assert ended["usage"]["queue_ms"] < 20_000, "the wait for its time is no wait in the queue"
        at_once = api.post("/v1/jobs", json={**PROMPT, "start_after": at}, headers={"Prefer": "wait=20"}).json()
    assert (at_once["status"], at_once["start_after"]) == ("succeeded", None)
    waiting = api.get(f"/v1/jobs/{tomorrow}").json()
    assert (waiting["status"], waiting["queue"]["position"]) == ("queued", None)
    assert tomorrow in [one["id"] for one in api.get("/v1/jobs").json()["data"]]
    assert api.post(f"/v1/jobs/{tomorrow}/cancel").json()["status"] == "cancelled"


def test_a_time_that_is_too_far_ahead_is_refused(api: httpx2.Client) -> None:
    refused = api.post("/v1/jobs", json={**PROMPT, "start_after": later(367 * 86_400)})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "start_after")


def test_a_batch_runs_no_line_before_its_time(openai: OpenAI, worker: ScriptedWorker, db: Database) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = openai.files.create(file=("input.jsonl", json.dumps(line).encode()), purpose="batch")
    at = later(3600)
    made = openai.batches.create(
        endpoint="/v1/chat/completions",
        completion_window="24h",
        input_file_id=file.id,
        extra_body={"start_after": at},
    )
    assert made.expires_at == at + 86_400
    wait_for(lambda: openai.batches.retrieve(made.id).status == "in_progress")
    with worker.serve(lambda _: ["done"]):
        time.sleep(1.5)
        counts = openai.batches.retrieve(made.id).request_counts
        assert counts is not None
        assert (counts.total, counts.completed) == (1, 0)
        with db.begin() as connection:
            assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0
            connection.execute(text("UPDATE batches SET start_after = now()"))
        wait_for(lambda: openai.batches.retrieve(made.id).status == "completed")
