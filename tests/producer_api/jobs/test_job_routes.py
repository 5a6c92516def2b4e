"""The native routes, beside streams and bad input."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from tests.cases import some_of
from tests.producer_api.calling import PROMPT, error_of, num_jobs, state_of, submit
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer


def test_a_submit_is_stored_as_it_was_meant(api: httpx2.Client, db: Database, tenant: str) -> None:
    response = api.post(
        "/v1/jobs",
        json=PROMPT | {"sampling": {"temperature": 0, "stop": ["x"]}, "metadata": {"k": "v"}, "deadline_ms": 60_000},
    )
    assert response.status_code == 202
    shown = response.json()
    assert response.headers["location"] == shown["links"]["self"] == f"/v1/jobs/{shown['id']}"
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-model-version"] == "1"
    assert shown["status"] == "queued"
    assert shown["expires_at"] - shown["created_at"] == 60
    stored = jobs.get(db, tenant, shown["id"])
    assert stored.payload["input"] == {"prompt": "hello"}
    assert stored.payload["sampling"]["stop"] == ["x"]
    assert stored.payload["sampling"]["max_tokens"] == CONTEXT_WINDOW - len("hello")
    assert (stored.input_tokens, stored.max_attempts, stored.metadata) == (5, 3, {"k": "v"})
    assert api.get(shown["links"]["self"]).json() | {"queue": shown["queue"]} == shown


def test_headers_say_what_is_left_of_the_limits(api: httpx2.Client) -> None:
    headers = api.post("/v1/jobs", json=PROMPT).headers
    assert headers["x-ratelimit-limit-requests"] == "6000"
    assert headers["x-ratelimit-remaining-requests"] == "5999"
    assert headers["x-ratelimit-remaining-tokens"] == "1999995"
    assert headers["x-ratelimit-reset-requests"].endswith("ms")
    assert int(headers["openai-processing-ms"]) >= 0


def test_an_announced_job_rings_its_queue_with_nothing_but_its_id(
    api: httpx2.Client, redis_client: redis.Redis
) -> None:
    job_id = submit(api, input={"prompt": "a-secret-prompt"})
    reply = redis_client.blpop(["tiny@1"], timeout=60)
    assert reply is not None
    message = json.loads(reply[1])
    assert message["headers"]["id"] == job_id
    assert message["headers"]["shadow"] == "generate:tiny@1"
    assert b"a-secret-prompt" not in reply[1]


def test_jobs_past_the_ready_window_wait_in_postgres(
    api: httpx2.Client, redis_client: redis.Redis, db: Database, tenant: str
) -> None:
    redis_client.rpush("tiny@1", *["hint"] * 256)
    waiting = submit(api)
    assert jobs.get(db, tenant, waiting).announced_at is None
    redis_client.delete("tiny@1")
    behind = submit(api)
    assert jobs.get(db, tenant, behind).announced_at is None, "it would overtake the one that waits"


def test_a_queued_job_knows_its_place(api: httpx2.Client, db: Database) -> None:
    first, second = submit(api), submit(api)

    def made(ago: str) -> None:
        with db.begin() as connection:
            connection.execute(text(f"UPDATE jobs SET created_at = now() - interval '{ago}'"))

    made("-1 hour")
    assert api.get(f"/v1/jobs/{second}").json()["queue"]["position"] is None, "not looked up for a job this young"
    made("1 s")
    assert api.get(f"/v1/jobs/{first}").json()["queue"]["position"] == 1
    assert api.get(f"/v1/jobs/{second}").json()["queue"]["position"] == 2


def test_prefer_wait_answers_200_with_the_result(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ["wat", "er"]):
        response = api.post("/v1/jobs", json=PROMPT, headers={"Prefer": "respond-async, wait=20"})
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in response.headers
    job = response.json()
    assert (job["status"], job["output"]) == ("succeeded", {"text": "water", "finish_reason": "stop"})
    assert job["usage"]["total_tokens"] == job["usage"]["input_tokens"] + job["usage"]["output_tokens"] == 7
    assert job["usage"]["first_token_ms"] == 2.0


def test_prefer_wait_that_is_too_short_answers_202(api: httpx2.Client) -> None:
    response = api.post("/v1/jobs", json=PROMPT, headers={"Prefer": "wait=0"})
    assert (response.status_code, response.json()["status"]) == (202, "queued")


def test_a_long_poll_whose_time_is_over_shows_the_job_as_it_is_then(
    api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, has_begun, is_claimed = server.runtime.reader.get, threading.Event(), threading.Event()

    async def look(tenant_id: str, job_id: str) -> jobs.Job:
        """Read the job; each look but the first one waits until a worker has it."""
        if has_begun.is_set():
            assert await asyncio.to_thread(is_claimed.wait, 60)
        found = await read(tenant_id, job_id)
        has_begun.set()
        return found

    job_id = submit(api)
    monkeypatch.setattr(server.runtime.reader, "get", look)
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(api.get, f"/v1/jobs/{job_id}", params={"wait": 0.5})
        assert has_begun.wait(60)
        worker.claim(job_id)
        is_claimed.set()
        assert poll.result().json()["status"] == "running", "it was queued when the poll began"


@pytest.mark.usefixtures("no_ticks")
def test_a_long_poll_wakes_when_the_job_ends(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)

    def end() -> None:
        worker.say(attempt, "done")
        worker.succeed(attempt)

    timer = threading.Timer(0.5, end)
    timer.start()
    job = api.get(f"/v1/jobs/{job_id}", params={"wait": 15}).json()
    timer.join()
    assert job["status"] == "succeeded", "it waited for its own end, not for the job's"


def test_a_long_poll_wakes_without_a_frame(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    timer = threading.Timer(0.3, worker.succeed, [attempt], {"announce": False})
    timer.start()
    assert api.get(f"/v1/jobs/{job_id}", params={"wait": 20}).json()["status"] == "succeeded"
    timer.join()


def test_a_long_poll_gives_up_in_time(api: httpx2.Client) -> None:
    job_id = submit(api)
    asked_at = time.monotonic()
    response = api.get(f"/v1/jobs/{job_id}", params={"wait": 0.3})
    assert response.json()["status"] == "queued"
    assert 0.3 <= time.monotonic() - asked_at < 15
    assert response.headers["retry-after"] == "1"


def test_cancelling_a_queued_job_ends_it(api: httpx2.Client, db: Database) -> None:
    job_id = submit(api)
    job = api.post(f"/v1/jobs/{job_id}/cancel").json()
    assert job["status"] == "cancelled"
    assert job["completed_at"] is not None
    assert state_of(db, job_id) == "cancelled"
    again = api.post(f"/v1/jobs/{job_id}/cancel")
    assert again.status_code == 409
    assert error_of(again)["code"] == "job_not_cancellable"
    assert again.headers["x-should-retry"] == "false"


def test_cancelling_a_running_job_asks_its_worker(
    api: httpx2.Client, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    with redis_client.pubsub() as listener:
        listener.subscribe("headrace:cancel")
        listener.get_message(timeout=60)
        job = api.post(f"/v1/jobs/{job_id}/cancel").json()
        message = listener.get_message(timeout=60)
    assert (job["status"], job["cancel_requested_at"] is not None) == ("running", True)
    assert message is not None
    assert message["data"] == job_id.encode()

    def outcomes() -> list[str | None]:
        return [one["outcome"] for one in api.get(f"/v1/jobs/{job_id}/timeline").json()["attempts"]]

    assert outcomes() == [None], "the attempt runs until its worker ends it"
    worker.say(attempt, "half")
    worker.obey_cancel(attempt)
    assert outcomes() == ["cancelled"]
    ended = api.get(f"/v1/jobs/{job_id}").json()
    assert (ended["status"], ended["output"]["text"]) == ("cancelled", "half")


def test_the_timeline_shows_events_and_attempts(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    worker.hand_back(worker.claim(job_id))
    worker.succeed(worker.claim(job_id))
    timeline = api.get(f"/v1/jobs/{job_id}/timeline").json()
    assert [event["kind"] for event in timeline["events"]] == ["queued", "started", "released", "started", "succeeded"]
    outcomes = [(attempt["epoch"], attempt["outcome"]) for attempt in timeline["attempts"]]
    assert outcomes == [(1, "released"), (2, "succeeded")]
    assert [attempt["first_token_ms"] for attempt in timeline["attempts"]] == [None, 1.5]
    assert all(a["ended_at"] >= a["started_at"] for a in timeline["attempts"])


def test_listing_pages_through_everything_once(api: httpx2.Client) -> None:
    made = [submit(api) for _ in range(5)]
    for order, expected in (("desc", made[::-1]), ("asc", made)):
        seen, after = [], None
        while True:
            page = api.get("/v1/jobs", params={"limit": 2, "order": order} | ({"after": after} if after else {})).json()
            seen += [job["id"] for job in page["data"]]
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert seen == expected


def test_listing_filters(api: httpx2.Client) -> None:
    red = submit(api, metadata={"colour": "red", "size": "s"})
    blue = submit(api, metadata={"colour": "blue", "size": "s"})
    api.post(f"/v1/jobs/{blue}/cancel")

    def ids(**filters: str) -> list[str]:
        return [job["id"] for job in api.get("/v1/jobs", params=filters).json()["data"]]

    assert ids(status="queued") == [red]
    assert ids(status="cancelled") == [blue]
    assert ids(**{"metadata[colour]": "blue"}) == [blue]
    assert ids(**{"metadata[colour]": "red", "metadata[size]": "s"}) == [red]
    assert ids(model="tiny", task="generate") == [blue, red]
    assert ids(model="other") == []
    created_at = api.get(f"/v1/jobs/{red}").json()["created_at"]
    assert ids(created_after=str(created_at - 1)) == [blue, red]
    assert ids(created_after=str(created_at + 60)) == []


@some_of(
    3,
    ("query", "param"),
    [
        ({"status": "done"}, "status"),
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "up"}, "order"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_after": "99999999999"}, "created_after"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_listing_refuses_what_it_does_not_know(api: httpx2.Client, query: dict[str, str], param: str) -> None:
    response = api.get("/v1/jobs", params=query)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_one_idempotency_key_is_one_job(api: httpx2.Client, db: Database) -> None:
    headers = {"Idempotency-Key": "k" * 255}
    first = api.post("/v1/jobs", json=PROMPT, headers=headers)
    second = api.post("/v1/jobs", json=dict(reversed(PROMPT.items())), headers=headers)
    assert first.status_code == second.status_code == 202
    assert second.json()["id"] == first.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert num_jobs(db) == 1


def test_one_idempotency_key_is_one_job_in_whatever_order_the_fields_come(api: httpx2.Client, db: Database) -> None:
    """Clients make JSON of maps, which have no order, so a retry may have another."""
    body = PROMPT | {"metadata": {"a": "1", "b": "2"}, "sampling": {"max_tokens": 4, "temperature": 0.5}}

    def post(body: dict[str, Any]) -> httpx2.Response:
        answer = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 202, answer.text
        return answer

    first, second = post(body), post(backwards(body))
    assert second.json()["id"] == first.json()["id"]
    assert num_jobs(db) == 1


def backwards(value: Any) -> Any:
    """The same JSON with the fields of every object in the opposite order."""
    return {name: backwards(value[name]) for name in reversed(value)} if isinstance(value, dict) else value


def test_a_key_with_another_body_is_refused(api: httpx2.Client, db: Database) -> None:
    headers = {"Idempotency-Key": "k"}
    api.post("/v1/jobs", json=PROMPT, headers=headers)
    response = api.post("/v1/jobs", json=PROMPT | {"priority": 1}, headers=headers)
    assert response.status_code == 422
    error = error_of(response)
    assert (error["code"], error["type"]) == ("idempotency_key_reused", "idempotency_error")
    assert num_jobs(db) == 1


def test_a_key_belongs_to_its_route_and_tenant(
    api: httpx2.Client, make_client: MakeClient, other_key: str, db: Database
) -> None:
    headers = {"Idempotency-Key": "k"}
    api.post("/v1/jobs", json=PROMPT, headers=headers)
    assert make_client(other_key).post("/v1/jobs", json=PROMPT, headers=headers).status_code == 202
    assert num_jobs(db) == 2


def test_many_at_once_with_one_key_make_one_job(api: httpx2.Client, db: Database) -> None:
    def post(number: int) -> httpx2.Response:
        return api.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": f"key-{number % 4}"})

    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(post, range(64)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == num_jobs(db) == 4
    assert sum(response.headers.get("idempotent-replayed") != "true" for response in responses) == 4


@pytest.mark.parametrize("chosen", ["", "k" * 256])
def test_an_idempotency_key_has_bounds(api: httpx2.Client, db: Database, chosen: str) -> None:
    response = api.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": chosen})
    assert response.status_code == 400
    assert error_of(response)["param"] == "Idempotency-Key"
    assert num_jobs(db) == 0


def test_concurrent_submits_are_all_stored(api: httpx2.Client, db: Database) -> None:
    with ThreadPoolExecutor(32) as pool:
        ids = list(pool.map(lambda _: submit(api), range(200)))
    assert len(set(ids)) == num_jobs(db) == 200
