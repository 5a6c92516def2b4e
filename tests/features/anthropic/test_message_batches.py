"""Message batches, made by Anthropic's client, on a server with a scripted worker."""

import json
from datetime import datetime, timedelta
from typing import Any

import anthropic as sdk
import httpx2
import pytest
from anthropic import Anthropic
from anthropic.types.messages import MessageBatch
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.jobs import sweeps
from headrace.store.settings import Settings
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.processes import wait_for
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import serving


def request(custom_id: str, content: str = "hi", **changes: Any) -> Any:
    params = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": content}]}
    return {"custom_id": custom_id, "params": params | changes}


def ended(client: Anthropic, made: MessageBatch) -> MessageBatch:
    def read() -> MessageBatch | None:
        found = client.messages.batches.retrieve(made.id)
        return found if found.processing_status == "ended" else None

    return wait_for(read, "the batch has ended")


def counts(batch: MessageBatch) -> dict[str, int]:
    return {name: number for name, number in batch.request_counts.model_dump().items() if number}


def test_a_batch_from_its_requests_to_its_results(client: Anthropic, worker: ScriptedWorker, db: Database) -> None:
    asked = [request(f"r{n}", f"number {n}") for n in range(20)]
    # What a route would refuse is an error of that request, and of no other.
    asked[3] = request("r3", stream=True)
    asked[4] = request("r4", model="huge")
    asked[5] = request("r5", "long " * 600)
    asked[6] = {"custom_id": "r6", "params": {"model": "tiny"}}
    made = client.messages.batches.create(requests=asked)
    assert (made.id[:9], made.processing_status, counts(made)) == ("msgbatch_", "in_progress", {"processing": 20})
    assert (made.results_url, made.ended_at) == (None, None)
    with pytest.raises(sdk.AnthropicError):
        client.messages.batches.results(made.id)
    with worker.serve(lambda payload: ["you said ", payload["input"]["messages"][-1]["content"]]):
        done = ended(client, made)
    assert counts(done) == {"succeeded": 16, "errored": 4}
    assert done.ended_at is not None
    assert done.results_url == f"{str(client.base_url).rstrip('/')}/v1/messages/batches/{made.id}/results"
    passed_on = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "headrace.example"}
    shown = client.messages.batches.retrieve(made.id, extra_headers=passed_on).results_url or ""
    assert shown.startswith("https://headrace.example/v1/messages/batches/")
    lines = list(client.messages.batches.results(made.id))
    refused = ["r3", "r4", "r5", "r6"]
    answered = [each["custom_id"] for each in asked if each["custom_id"] not in refused]
    assert [line.custom_id for line in lines] == answered + refused, "answers stand before errors"
    results = {line.custom_id: line.result for line in lines}
    good = results["r7"]
    assert good.type == "succeeded"
    assert (good.message.content[0].type, good.message.usage.service_tier) == ("text", "batch")
    assert good.message.content[0].text == "you said number 7"
    errors = {name: result.error.error for name, result in results.items() if result.type == "errored"}
    assert {name: error.type for name, error in errors.items()} == {
        "r3": "invalid_request_error",
        "r4": "not_found_error",
        "r5": "invalid_request_error",
        "r6": "invalid_request_error",
    }
    assert "`messages` is required" in errors["r6"].message
    assert num_jobs(db) == 16


def test_a_batch_is_cancelled_and_deleted(
    client: Anthropic, api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    made = client.messages.batches.create(requests=[request("a"), request("b"), request("c", model="huge")])
    wait_for(lambda: num_jobs(db) == 2, "the lines are jobs")
    refused = api.delete(f"/v1/messages/batches/{made.id}")
    assert (refused.status_code, error_of(refused)["type"]) == (409, "invalid_request_error")
    cancelled = client.messages.batches.cancel(made.id)
    assert cancelled.processing_status == "canceling"
    assert cancelled.cancel_initiated_at is not None
    done = ended(client, made)
    assert counts(done) == {"canceled": 2, "errored": 1}
    kinds = {line.custom_id: line.result.type for line in client.messages.batches.results(made.id)}
    assert kinds == {"a": "canceled", "b": "canceled", "c": "errored"}
    assert client.messages.batches.delete(made.id).type == "message_batch_deleted"
    with pytest.raises(sdk.NotFoundError):
        client.messages.batches.retrieve(made.id)
    assert api.get("/v1/files").json()["data"] == [], "its files are gone as well"
    with db.begin() as connection:
        assert connection.execute(text("SELECT bool_and(purge_when_ended) FROM jobs")).scalar_one()


def test_what_has_not_begun_when_the_window_ends_has_expired(client: Anthropic, db: Database, tenant: str) -> None:
    set_limits(db, tenant, None, Limits(concurrent_jobs=2), set_by=SetBy.OPERATOR, actor="tests")
    made = client.messages.batches.create(requests=[request(f"r{n}") for n in range(5)])
    wait_for(lambda: num_jobs(db) == 2, "the tenant's limit lets two lines in")
    with db.begin() as connection:
        connection.execute(text("UPDATE batches SET expires_at = now()"))

    def read() -> MessageBatch | None:
        with db.begin() as connection:
            connection.execute(text("UPDATE jobs SET deadline_at = now() WHERE state = 'queued'"))
        sweeps.expire_overdue(db)
        found = client.messages.batches.retrieve(made.id)
        return found if found.processing_status == "ended" else None

    assert counts(wait_for(read, "the batch has ended")) == {"expired": 5}


def test_pages_have_message_batches_alone(client: Anthropic, api: httpx2.Client) -> None:
    made = [client.messages.batches.create(requests=[request("a", f"{n}")]).id for n in range(4)]
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}
    files = {"file": ("lines.jsonl", json.dumps(line).encode())}
    file_id = api.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
    other = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    other_id = api.post("/v1/batches", json=other).raise_for_status().json()["id"]
    newest_first = made[::-1]
    assert [batch.id for batch in client.messages.batches.list(limit=3)] == newest_first
    page = client.messages.batches.list(before_id=newest_first[3], limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (newest_first[1:3], True)
    missing = api.get(f"/v1/messages/batches/{other_id.replace('batch_', 'msgbatch_')}")
    assert (missing.status_code, error_of(missing)["type"]) == (404, "not_found_error")
    assert api.get(f"/v1/batches/{made[0].replace('msgbatch_', 'batch_')}").json()["endpoint"] == "/v1/messages"


def test_a_repeated_request_makes_one_batch_and_one_file(client: Anthropic, api: httpx2.Client) -> None:
    asked = {"requests": [request("a")]}
    first, second = (client.messages.batches.create(**asked, extra_headers={"Idempotency-Key": "k"}) for _ in range(2))
    retried = client.messages.batches.create(**asked, extra_headers={"x-stainless-retry-count": "1"})
    assert first.id == second.id == retried.id
    assert len([file for file in api.get("/v1/files").json()["data"] if file["purpose"] == "batch"]) == 1


@pytest.mark.usefixtures("model")
def test_a_batch_that_has_not_begun_shows_its_requests_and_has_no_results(
    settings: Settings, key: str, db: Database, tenant: str
) -> None:
    """No keeper runs here, so nothing of the batch is read or ended."""
    set_limits(db, tenant, None, Limits(live_batches=1), set_by=SetBy.OPERATOR, actor="tests")
    path, body = "/v1/messages/batches", {"requests": [request("a"), request("b", "line\nbreak"), request("c")]}
    with (
        serving(settings.model_copy(update={"keep_batches": "off"})) as server,
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api,
    ):
        made = api.post(path, json=body).raise_for_status().json()
        no_counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
        assert made["request_counts"] == {"processing": 3, **no_counts}
        begun, ends = (datetime.fromisoformat(made[name]) for name in ("created_at", "expires_at"))
        assert ends - begun == timedelta(days=1)
        one = f"{path}/{made['id']}"
        assert api.get(one).json() == made
        assert api.get(path).json() == {
            "data": [made],
            "has_more": False,
            "first_id": made["id"],
            "last_id": made["id"],
        }
        refused = api.get(f"{one}/results")
        assert (refused.status_code, "not ended" in error_of(refused)["message"]) == (400, True)
        (file,) = api.get("/v1/files").json()["data"]
        assert (file["filename"], file["purpose"], file["expires_at"]) == ("message_batch.jsonl", "batch", None)
        lines = api.get(f"/v1/files/{file['id']}/content").text.splitlines()
        assert [json.loads(line) for line in lines] == [
            {"custom_id": each["custom_id"], "method": "POST", "url": "/v1/messages", "body": each["params"]}
            for each in body["requests"]
        ]
        full = api.post(path, json={"requests": [request("d")]})
        assert (full.status_code, error_of(full)["type"]) == (429, "rate_limit_error")
        assert api.get("/v1/files").json()["data"] == [file], "a batch that is refused leaves no file"
        cancelling = api.post(f"{one}/cancel").json()
        assert (cancelling["processing_status"], cancelling["request_counts"]) == ("canceling", made["request_counts"])
        for bad in ("limit=0", "limit=1001"):
            assert (api.get(f"{path}?{bad}").status_code, api.get(f"{path}?limit=1000").status_code) == (400, 200)


def test_a_bad_batch_is_refused(api: httpx2.Client, subtests: pytest.Subtests) -> None:
    bad: dict[str, tuple[Any, str]] = {
        "nothing": ({}, "requests"),
        "no requests": ({"requests": []}, "requests"),
        "one name twice": ({"requests": [request("a"), request("a")]}, "requests"),
        "a long name": ({"requests": [request("a" * 65)]}, "requests[0].custom_id"),
        "a name with a blank": ({"requests": [request("a b")]}, "requests[0].custom_id"),
        "no params": ({"requests": [{"custom_id": "a"}]}, "requests[0].params"),
        "params are a text": ({"requests": [{"custom_id": "a", "params": "x"}]}, "requests[0].params"),
    }
    for name, (body, param) in bad.items():
        with subtests.test(name):
            response = api.post("/v1/messages/batches", json=body)
            error = error_of(response)
            assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
            if name == "one name twice":
                assert "`custom_id` a:" in error["message"]
    assert api.get("/v1/files").json()["data"] == []
