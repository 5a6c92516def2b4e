"""Batches by the official client, on a server with a scripted worker."""

import base64
import json
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import fsspec
import httpx2
import pytest
import redis
from openai import ConflictError, OpenAI
from openai.types import Batch
from sqlalchemy import Connection, text

from examples.nightly_batch import parquet
from headrace.features.batches import batch_keeper, batch_steps, batch_validation, batches
from headrace.features.batches.batch_keeper import MAX_LONG_TASKS, BatchStep, next_step, num_to_take
from headrace.features.batches.batch_lines import LineReader
from headrace.features.batches.batch_round_robin import BatchRoundRobin
from headrace.features.batches.batch_steps import BatchProgress, LiveBatch, ResultFiles
from headrace.features.batches.batches import Batch as StoredBatch
from headrace.features.files.blob_storage import Blobs
from headrace.features.webhooks.outbox import take_due
from headrace.producer_api.http.requests import MOST_CONTAINERS
from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.errors import InvalidRequest
from headrace.store.jobs import sweeps
from headrace.store.jobs.acceptance import accept_within
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import NewJob
from headrace.store.registry import versions
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys, quotas
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests import processes
from tests.cases import some_of
from tests.producer_api.calling import CHAT, error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.jobs.test_version_routes import second
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving

__all__ = ["second"]

URL = "/v1/chat/completions"


def line(custom_id: object, **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": CHAT} | changes


def body(**changes: Any) -> dict[str, Any]:
    return {"body": CHAT | changes}


def make(openai: OpenAI, lines: list[dict[str, Any]] | bytes, **changes: Any) -> Batch:
    content = lines if isinstance(lines, bytes) else b"".join(json.dumps(each).encode() + b"\n" for each in lines)
    file = openai.files.create(file=("input.jsonl", content), purpose="batch")
    asked: dict[str, Any] = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id} | changes
    return openai.batches.create(**asked)


def wait(openai: OpenAI, batch: Batch, condition: Callable[[Batch], object], timeout_s: float = 60.0) -> Batch:
    deadline = time.monotonic() + timeout_s
    while not condition(found := openai.batches.retrieve(batch.id)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def wait_for(openai: OpenAI, batch: Batch, status: str) -> Batch:
    found = wait(openai, batch, lambda found: found.status in {status, "failed", "completed", "expired", "cancelled"})
    assert found.status == status, found
    return found


def read(openai: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [] if file_id is None else [json.loads(each) for each in openai.files.content(file_id).text.splitlines()]


def say_the_prompt(payload: dict[str, Any]) -> list[str]:
    return ["you said ", payload["input"]["messages"][-1]["content"]]


def test_a_batch_from_upload_to_output(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    api.post("/v1/webhook_endpoints", json={"url": "https://example.com/hook", "events": ["*"]}).raise_for_status()
    lines = [line(f"r{n}", **body(messages=[{"role": "user", "content": f"number {n}"}])) for n in range(150)]
    # What only the tokenizer can know is the line's own error, as the route would have answered.
    lines[70] = line("r70", **body(messages=[{"role": "user", "content": "long " * 600}]))
    lines[71]["body"]["job"] = {"deadline_ms": 30 * 86_400_000}
    with worker.serve(say_the_prompt):
        made = make(openai, lines, metadata={"order": "42"})
        assert (made.status, made.endpoint, made.metadata) == ("validating", URL, {"order": "42"})
        assert made.expires_at == made.created_at + 86_400
        done = wait_for(openai, made, "completed")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 150, "completed": 149, "failed": 1}
    assert done.model == "tiny"
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert None not in times
    assert times == sorted(time for time in times if time is not None)
    output, errors = read(openai, done.output_file_id), read(openai, done.error_file_id)
    assert [each["custom_id"] for each in output] == [f"r{n}" for n in range(150) if n != 70]
    answer = output[7]["response"]
    assert (answer["status_code"], output[7]["error"]) == (200, None)
    assert answer["body"]["object"] == "chat.completion"
    assert answer["body"]["choices"][0]["message"]["content"] == "you said number 7"
    (refused,) = errors
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("r70", 400)
    assert refused["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert openai.files.retrieve(done.output_file_id or "").purpose == "batch_output"
    with db.begin() as connection:
        jobs = connection.execute(
            text(
                "SELECT class_rank, api_key_id LIKE 'key%', deadline_at - created_at < interval '25 hours', count(*)"
                " FROM jobs GROUP BY 1, 2, 3"
            )
        ).all()
    # One job a line, of the batch class, counted for the key; the line that asks for longer ends with the window too.
    assert [tuple(row) for row in jobs] == [(2, True, True, 149)]
    # Of 151 ends only one sends an event: the batch's.
    (event,) = take_due(db, 10, 60)
    assert (event.type, event.subject_id, event.status) == ("batch.completed", made.id, "completed")


def test_what_is_wrong_is_said_with_its_line(openai: OpenAI, db: Database) -> None:
    content = b"\n".join(
        [
            json.dumps(line("good")).encode(),
            b"{",
            b"",
            b"[]",
            json.dumps(line(7)).encode(),
            json.dumps(line("a", method="GET")).encode(),
            json.dumps(line("b", url="/v1/embeddings")).encode(),
            json.dumps(line("c", body=None)).encode(),
            json.dumps(line("d", **body(messages=[]))).encode(),
            json.dumps(line("e", **body(temperature=9))).encode(),
            json.dumps(line("f", **body(stream=True))).encode(),
            json.dumps(line("g", **body(model="nosuch"))).encode(),
            json.dumps(line("good")).encode(),
            b"[" * (MOST_CONTAINERS + 1),
        ]
    )
    failed = wait_for(openai, make(openai, content), "failed")
    assert failed.failed_at is not None
    assert failed.errors is not None
    found = [(error.line, error.code, error.param) for error in failed.errors.data or []]
    assert found == [
        (2, "invalid_json_line", None),
        (4, "invalid_json_line", None),
        (5, "missing_required_parameter", "custom_id"),
        (6, "invalid_method", "method"),
        (7, "mismatched_url", "url"),
        (8, "missing_required_parameter", "body"),
        (9, "invalid_value", "body.messages"),
        (10, "invalid_value", "body.temperature"),
        (11, "invalid_value", "body.stream"),
        (12, "model_not_found", "body.model"),
        (13, "duplicate_custom_id", "custom_id"),
        (14, "invalid_json_line", None),
    ]
    with db.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0


def test_an_empty_input_fails(openai: OpenAI) -> None:
    failed = wait_for(openai, make(openai, b"\n\n"), "failed")
    assert failed.errors is not None
    assert [error.code for error in failed.errors.data or []] == ["empty_file"]


def test_a_cancelled_batch_publishes_what_it_has(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    batch = make(openai, [line(f"r{n}") for n in range(200)])
    wait(openai, batch, lambda _: len(under_way(db)) >= 60)
    first, running, *_ = under_way(db)
    attempt = worker.claim(first)
    worker.say(attempt, "done")
    worker.succeed(attempt)
    attempt = worker.claim(running)
    wait(openai, batch, lambda found: found.request_counts.completed == 1)
    asked = openai.batches.cancel(batch.id)
    assert (asked.status, openai.batches.cancel(batch.id).status) == ("cancelling", "cancelling")
    # A line that runs is its worker's to end; until then the batch waits for it.
    deadline = time.monotonic() + 60
    while under_way(db) != [running]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert batch_steps.cancel_jobs(db, tenant, batch.id) == ([], []), "it is asked once"
    worker.obey_cancel(attempt)
    ended = wait_for(openai, batch, "cancelled")
    assert ended.cancelled_at is not None
    assert [each["custom_id"] for each in read(openai, ended.output_file_id)] == ["r0"]
    errors = read(openai, ended.error_file_id)
    assert [each["custom_id"] for each in errors] == [f"r{n}" for n in range(1, 200)]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert ended.request_counts is not None
    assert ended.request_counts.model_dump() == {"total": 200, "completed": 1, "failed": 199}
    with pytest.raises(ConflictError, match="cancelled"):
        openai.batches.cancel(batch.id)


def test_a_line_whose_job_was_cancelled_alone_says_so(
    api: httpx2.Client, openai: OpenAI, worker: ScriptedWorker, db: Database
) -> None:
    batch = make(openai, [line("kept"), line("dropped")])
    wait(openai, batch, lambda _: len(under_way(db)) == 2)
    kept, dropped = under_way(db)
    api.post(f"/v1/jobs/{dropped}/cancel").raise_for_status()
    attempt = worker.claim(kept)
    worker.say(attempt, "done")
    worker.succeed(attempt)
    ended = wait_for(openai, batch, "completed")
    assert [each["custom_id"] for each in read(openai, ended.output_file_id)] == ["kept"]
    (error,) = read(openai, ended.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("dropped", "batch_cancelled")


def under_way(db: Database) -> list[str]:
    with db.begin() as connection:
        return list(connection.execute(text("SELECT id FROM jobs WHERE completed_at IS NULL ORDER BY id")).scalars())


@pytest.mark.usefixtures("second")
def test_a_line_of_a_version_that_was_rejected_says_so(openai: OpenAI, worker: ScriptedWorker, db: Database) -> None:
    with db.begin() as connection:
        connection.execute(text("UPDATE model_versions SET state = 'rejected', state_at = now() WHERE version = 2"))
    with worker.serve(say_the_prompt):
        ended = wait_for(openai, make(openai, [line("good"), line("bad", **body(model="tiny@2"))]), "completed")
    assert [each["custom_id"] for each in read(openai, ended.output_file_id)] == ["good"]
    (error,) = read(openai, ended.error_file_id)
    assert (error["custom_id"], error["response"]["body"]["error"]["code"]) == ("bad", "model_rejected")


def test_results_are_read_in_order_while_the_batch_runs(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    lines = [line(f"r{n}") for n in range(4)]
    lines[1] = line("r1", **body(messages=[{"role": "user", "content": "long " * 600}]))
    batch = make(openai, lines)
    wait(openai, batch, lambda _: len(under_way(db)) == 3)

    def results(after: str, **more: Any) -> tuple[list[dict[str, Any]], str]:
        found = api.get(f"/v1/batches/{batch.id}/results", params={"after": after, **more}).raise_for_status()
        return [json.loads(each) for each in found.text.splitlines()], found.headers["headrace-next"]

    def answer(job_id: str) -> None:
        attempt = worker.claim(job_id)
        worker.say(attempt, "done")
        worker.succeed(attempt)

    first, third, fourth = under_way(db)
    answer(third)
    assert results("1.0") == ([], "1.0"), "the first line has not ended"
    answer(first)
    seen, go_on = results("1.0", limit=2)
    assert [each["custom_id"] for each in seen] == ["r0", "r1"]
    more, go_on = results(go_on)
    assert [each["custom_id"] for each in more] == ["r2"]
    assert results(go_on) == ([], go_on)
    answer(fourth)
    ended = wait_for(openai, batch, "completed")
    more, last = results(go_on)
    assert (results(last), results("1.0")[1]) == (([], last), last)
    written = {
        each["custom_id"]: each for id_ in (ended.output_file_id, ended.error_file_id) for each in read(openai, id_)
    }
    assert results("1.0")[0] == [written[f"r{n}"] for n in range(4)]
    assert more == [written["r3"]]
    refused = api.get(f"/v1/batches/{batch.id}/results", params={"after": "x"})
    assert refused.status_code == 400


@pytest.mark.full
def test_results_are_copied_to_parquet_on_s3_while_the_batch_runs(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "WAIT_S", 0.05)
    lines = [line(f"r{n}", **body(messages=[{"role": "user", "content": f"number {n}"}])) for n in range(40)]
    lines[7] = line("r7", **body(messages=[{"role": "user", "content": "long " * 600}]))
    batch = make(openai, lines)
    url = f"{s3_url}/results.parquet"
    with ThreadPoolExecutor(1) as pool, worker.serve(say_the_prompt):
        copied = pool.submit(parquet.copy, api, batch.id, url)
        wait_for(openai, batch, "completed")
        assert copied.result() == 40
    with fsspec.open(url, "rb") as file:
        rows = import_module("pyarrow.parquet").read_table(file).to_pylist()
    assert [row["custom_id"] for row in rows] == [f"r{n}" for n in range(40)]
    assert [row["status_code"] for row in rows] == [400 if n == 7 else 200 for n in range(40)]
    assert json.loads(rows[39]["body"])["choices"][0]["message"]["content"] == "you said number 39"
    assert json.loads(rows[7]["body"])["error"]["code"]


def test_a_retry_runs_only_what_has_no_answer(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    lines = [line(f"r{n}", **body(messages=[{"role": "user", "content": f"number {n}"}])) for n in range(5)]
    batch = make(openai, lines, metadata={"order": "42"})
    wait(openai, batch, lambda _: len(under_way(db)) == 5)
    retry = partial(api.post, f"/v1/batches/{batch.id}/retry", headers={"Idempotency-Key": "again"})
    assert retry().status_code == 409, "it has not ended"
    for job_id in under_way(db)[1:3]:
        attempt = worker.claim(job_id)
        worker.say(attempt, "done")
        worker.succeed(attempt)
    openai.batches.cancel(batch.id)
    ended = wait_for(openai, batch, "cancelled")
    with worker.serve(say_the_prompt):
        made = retry().raise_for_status().json()
        assert (made["metadata"], made["endpoint"], made["completion_window"]) == ({"order": "42"}, URL, "24h")
        assert retry().json()["id"] == made["id"]
        again = wait_for(openai, Batch(**made), "completed")
    answered = {each["custom_id"]: each for id_ in (ended, again) for each in read(openai, id_.output_file_id)}
    assert again.request_counts is not None
    assert (sorted(answered), again.request_counts.total) == ([f"r{n}" for n in range(5)], 3)
    assert answered["r4"]["response"]["body"]["choices"][0]["message"]["content"] == "you said number 4"
    refused = api.post(f"/v1/batches/{again.id}/retry")
    assert (refused.status_code, len(openai.files.list(purpose="batch").data)) == (400, 2)


def test_a_batch_whose_window_ends_publishes_what_it_has(openai: OpenAI, worker: ScriptedWorker, db: Database) -> None:
    batch = make(openai, [line(f"r{n}") for n in range(300)])
    wait(openai, batch, lambda _: under_way(db))
    attempt = worker.claim(under_way(db)[0])
    worker.say(attempt, "in time")
    worker.succeed(attempt)
    wait(openai, batch, lambda found: found.request_counts.completed == 1)
    with db.begin() as connection:
        connection.execute(text("UPDATE batches SET expires_at = now()"))
    deadline = time.monotonic() + 60
    while openai.batches.retrieve(batch.id).status == "in_progress":
        assert time.monotonic() < deadline
        with db.begin() as connection:
            # Again each time: lines that were being taken just now were promised the window as it was.
            connection.execute(text("UPDATE jobs SET deadline_at = now() WHERE state = 'queued'"))
        sweeps.expire_overdue(db)
    ended = wait_for(openai, batch, "expired")
    assert [each["custom_id"] for each in read(openai, ended.output_file_id)] == ["r0"]
    errors = read(openai, ended.error_file_id)
    assert len(errors) == 299
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}


def test_texts_are_continued_as_well(openai: OpenAI, worker: ScriptedWorker) -> None:
    lines = [line("a", url="/v1/completions", body={"model": "tiny", "prompt": "The wheel"})]
    with worker.serve(lambda payload: [payload["input"]["prompt"], " turns"]):
        done = wait_for(openai, make(openai, lines, endpoint="/v1/completions"), "completed")
    (answer,) = read(openai, done.output_file_id)
    assert answer["response"]["body"]["object"] == "text_completion"
    assert answer["response"]["body"]["choices"][0]["text"] == "The wheel turns"


def test_responses_are_made_as_well(openai: OpenAI, worker: ScriptedWorker) -> None:
    lines = [line("a", url="/v1/responses", body={"model": "tiny", "input": "bread"})]
    with worker.serve(say_the_prompt):
        done = wait_for(openai, make(openai, lines, endpoint="/v1/responses"), "completed")
    (answer,) = read(openai, done.output_file_id)
    found = openai.responses.retrieve(answer["response"]["body"]["id"])
    assert (found.status, found.output_text, found.service_tier) == ("completed", "you said bread", "flex")
    lines[0]["body"]["previous_response_id"] = found.id
    failed = wait_for(openai, make(openai, lines, endpoint="/v1/responses"), "failed")
    assert failed.errors is not None
    assert [error.param for error in failed.errors.data or []] == ["body.previous_response_id"]
    body = {"model": "tiny", "input": [{"type": "item_reference", "id": found.output[0].id}]}
    failed = wait_for(
        openai, make(openai, [line("a", url="/v1/responses", body=body)], endpoint="/v1/responses"), "failed"
    )
    assert failed.errors is not None
    assert [error.param for error in failed.errors.data or []] == ["body.input[0].type"]


def test_vectors_are_made_as_well(openai: OpenAI, db: Database, encoder: ModelVersion) -> None:
    vectors = [base64.b64encode(struct.pack("<2f", 0.5, -0.25)).decode()]
    lines = [line("a", url="/v1/embeddings", body={"model": "org/vectors", "input": "bread"})]
    batch = make(openai, lines, endpoint="/v1/embeddings")
    wait(openai, batch, lambda _: under_way(db))
    claims = claim(db, "scripted", "org/vectors@1", under_way(db), lease_s=30)
    finish(
        db,
        [
            Finish(one.job_id, one.epoch, JobState.SUCCEEDED, {"embeddings": vectors}, None, {})
            for one in claims.values()
        ],
    )
    (answer,) = read(openai, wait_for(openai, batch, "completed").output_file_id)
    assert answer["response"]["body"]["data"][0]["embedding"] == [0.5, -0.25]


def test_a_deleted_input_does_not_stop_its_batch(openai: OpenAI, worker: ScriptedWorker) -> None:
    batch = make(openai, [line("a")], output_expires_after={"anchor": "created_at", "seconds": 7200})
    openai.files.delete(batch.input_file_id)
    with worker.serve(say_the_prompt):
        done = wait_for(openai, batch, "completed")
    output = openai.files.retrieve(done.output_file_id or "")
    assert output.expires_at is not None
    assert output.expires_at - output.created_at == 7200


def test_batches_are_listed_newest_first_and_only_to_their_owner(
    openai: OpenAI, api: httpx2.Client, make_client: MakeClient, other_key: str
) -> None:
    made = [make(openai, b"x").id for _ in range(3)]
    assert [batch.id for batch in openai.batches.list(limit=2)] == made[::-1], "over two pages"
    stranger = make_client(other_key)
    file_id = openai.batches.retrieve(made[0]).input_file_id
    asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file_id}
    for response in (
        stranger.get(f"/v1/batches/{made[0]}"),
        stranger.post(f"/v1/batches/{made[0]}/cancel"),
        stranger.post("/v1/batches", json=asked),
    ):
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert stranger.get("/v1/batches").json()["data"] == []


@some_of(
    2,
    ("changes", "param"),
    [
        ({"endpoint": "/v1/jobs"}, "endpoint"),
        ({"completion_window": "59m"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"metadata": {"k": "v" * 600}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
    ],
)
def test_a_batch_that_is_asked_for_wrongly_is_refused(
    api: httpx2.Client, openai: OpenAI, changes: dict[str, Any], param: str
) -> None:
    file = openai.files.create(file=b"{}", purpose="batch")
    asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id}
    response = api.post("/v1/batches", json=asked | changes)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_a_file_for_something_else_is_no_input(api: httpx2.Client, openai: OpenAI) -> None:
    file = openai.files.create(file=b"{}", purpose="user_data")
    asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id}
    response = api.post("/v1/batches", json=asked)
    assert (response.status_code, error_of(response)["param"]) == (400, "input_file_id")


def test_a_request_that_comes_again_makes_one_batch(api: httpx2.Client, openai: OpenAI) -> None:
    file = openai.files.create(file=b"{}", purpose="batch")
    asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id}
    first = api.post("/v1/batches", json=asked).json()["id"]
    again = api.post("/v1/batches", json=asked, headers={"x-stainless-retry-count": "1"}).json()["id"]
    assert again == first
    keyed = [api.post("/v1/batches", json=asked, headers={"Idempotency-Key": "k"}).json()["id"] for _ in range(2)]
    assert keyed[0] == keyed[1] != first
    other = api.post("/v1/batches", json=asked | {"completion_window": "1h"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422


def test_another_process_goes_on_where_one_stopped(
    settings: Settings, openai: OpenAI, worker: ScriptedWorker, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers: the one that keeps the batches stops while lines are under way."""
    monkeypatch.setattr(batch_keeper, "IDLE_S", 0.05)
    with serving(settings) as second:
        batch = make(openai, [line(f"r{n}") for n in range(300)])
        wait(openai, batch, lambda _: len(under_way(db)) >= 64)
        openai_there = OpenAI(base_url=f"{second.url}/v1", api_key=openai.api_key, max_retries=0)
        with worker.serve(say_the_prompt):
            second.app.state.works[batch_keeper.keeper_for].stop()
            done = wait_for(openai_there, batch, "completed")
        openai_there.close()
    assert [each["custom_id"] for each in read(openai, done.output_file_id)] == [f"r{n}" for n in range(300)]


def test_all_lines_go_to_the_versions_that_the_batch_began_with_also_after_a_promotion_and_a_restart(
    settings: Settings,
    key: str,
    second: ModelVersion,
    worker: ScriptedWorker,
    redis_client: redis.Redis,
    db: Database,
) -> None:
    assert second.version == 2
    versions.set_alias(db, "tiny", "next", 2, "tests")
    few = settings.model_copy(update={"batch_lines_under_way": 8})
    lines = [line(f"r{n}", **body(model="tiny@next" if n % 5 == 4 else "tiny")) for n in range(20)]
    with serving(few) as server, OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as openai:
        batch = make(openai, lines)
        begun = wait(openai, batch, lambda _: under_way(db))
    pinned = {"tiny": "tiny@1", "tiny@next": "tiny@2"}
    assert begun.to_dict()["model_versions"] == pinned
    versions.set_alias(db, "tiny", "default", 2, "tests")
    versions.remove_alias(db, "tiny", "next", "tests")
    versions.retire(db, "tiny", 1, "tests")
    with serving(few) as server, OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as openai:
        other = ScriptedWorker(db, redis_client, "tiny@2")
        with worker.serve(say_the_prompt), other.serve(say_the_prompt):
            done = wait_for(openai, batch, "completed")
    assert done.to_dict()["model_versions"] == pinned
    with db.begin() as connection:
        ran = connection.execute(
            text("SELECT model_version FROM jobs JOIN batch_lines ON job_id = jobs.id ORDER BY line")
        ).scalars()
        assert list(ran) == [2 if n % 5 == 4 else 1 for n in range(20)]


def test_a_step_that_comes_too_late_changes_nothing(openai: OpenAI, worker: ScriptedWorker, db: Database) -> None:
    batch = make(openai, [line("a")])
    wait(openai, batch, lambda _: under_way(db))
    with db.begin() as connection:
        tenant_id = connection.execute(text("SELECT tenant_id FROM batches")).scalar_one()
    now = batches.get(db, tenant_id, batch.id)
    before = batches.Batch(**{**{name: getattr(now, name) for name in now.__slots__}, "next_offset": 0})
    assert not batch_steps.add_lines(db, before, [], next_line=9, next_offset=99)
    with worker.serve(say_the_prompt):
        wait_for(openai, batch, "completed")
    finalizing = batches.Batch(
        **{**{name: getattr(now, name) for name in now.__slots__}, "status": BatchStatus.FINALIZING}
    )
    assert not batch_steps.end(db, finalizing, BatchStatus.EXPIRED, ResultFiles())
    assert openai.batches.retrieve(batch.id).status == "completed"


def progress(
    status: BatchStatus,
    *,
    done: int = 0,
    total: int = 10,
    under_way: int = 0,
    left_s: float = 9,
    is_early: bool = False,
) -> BatchProgress:
    fields: dict[str, Any] = dict.fromkeys(batches.Batch.__slots__)
    fields |= {"status": status, "num_completed": done, "num_failed": 0, "num_total": total}
    return BatchProgress(batches.Batch(**fields), under_way, left_s, is_early=is_early)


@pytest.mark.parametrize(
    ("found", "step"),
    [
        (progress(BatchStatus.VALIDATING), BatchStep.VALIDATE),
        (progress(BatchStatus.VALIDATING, left_s=0), BatchStep.PUBLISH),
        (progress(BatchStatus.IN_PROGRESS, done=3, under_way=6), BatchStep.TAKE_LINES),
        (progress(BatchStatus.IN_PROGRESS, is_early=True), BatchStep.WAIT),
        (progress(BatchStatus.IN_PROGRESS, done=4, under_way=6), BatchStep.WAIT),
        (progress(BatchStatus.IN_PROGRESS, done=3, under_way=6, left_s=0), BatchStep.WAIT),
        (progress(BatchStatus.IN_PROGRESS, done=3, left_s=0), BatchStep.FINALIZE),
        (progress(BatchStatus.IN_PROGRESS, done=10), BatchStep.FINALIZE),
        (progress(BatchStatus.FINALIZING, done=10), BatchStep.PUBLISH),
        (progress(BatchStatus.CANCELLING, under_way=1), BatchStep.CANCEL_JOBS),
        (progress(BatchStatus.CANCELLING), BatchStep.PUBLISH),
        (progress(BatchStatus.COMPLETED), BatchStep.WAIT),
    ],
)
def test_what_is_due(found: BatchProgress, step: BatchStep) -> None:
    assert next_step(found) is step


def test_live_batches_share_what_may_be_under_way() -> None:
    assert num_to_take(0, 1, 1, 1024) == batch_keeper.MAX_LINES_PER_TURN
    assert num_to_take(1000, 1, 1, 1024) == 24
    assert num_to_take(300, 4, 1, 1024) == num_to_take(300, 1, 4, 1024) == 0
    assert num_to_take(0, 1, 1000, 1024) == batch_keeper.MIN_UNDER_WAY, "a tenant's only one always begins"
    assert num_to_take(0, 100, 2, 1024) == 5, "a tenant's many share what is its own"
    assert num_to_take(0, 5000, 2, 1024) == 1


def test_a_tenants_batch_waits_for_one_batch_of_each_other_tenant() -> None:
    now = 0.0
    turns = BatchRoundRobin(clock=lambda: now)
    many = [LiveBatch(f"a{number}", "A") for number in range(5)]
    turns.keep([*many, LiveBatch("b0", "B")])
    seen = []
    for _ in range(6):
        now += 1e-3
        for batch in turns.round():
            seen.append(batch.id)
            turns.worked(batch)
    assert seen == ["a0", "b0", "a1", "b0", "a2", "b0", "a3", "b0", "a4", "b0", "a0", "b0"]
    turns.keep([*many, LiveBatch("a5", "A")])
    assert [batch.id for batch in turns.round()] == ["a5"], "a new one is due at once"


def test_a_batch_that_waits_or_fails_is_looked_at_less_and_less_often() -> None:
    now, batch = 0.0, LiveBatch("a0", "A")
    turns = BatchRoundRobin(clock=lambda: now)
    turns.keep([batch])

    def delay_after(note: Callable[[LiveBatch], None]) -> float:
        nonlocal now
        note(batch)
        began = now
        while not turns.round():
            now += 0.05
        return round(now - began, 1)

    assert [delay_after(turns.waits) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert [delay_after(turns.failed) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert delay_after(turns.worked) == 0
    assert delay_after(turns.failed) == 1
    turns.keep([batch])
    assert turns.round() == [batch], "what is known of a batch is kept while it lives"


def test_lines_that_the_tenants_limits_do_not_let_in_wait_for_room(
    openai: OpenAI, db: Database, tenant: str, worker: ScriptedWorker
) -> None:
    set_limits(db, tenant, None, Limits(concurrent_jobs=3), set_by=SetBy.OPERATOR, actor="tests")
    batch = make(openai, [line(str(number)) for number in range(8)])
    wait(openai, batch, lambda _: quotas.usage_of(db, tenant).jobs == 3)
    with worker.serve(lambda _: ["ok"]):
        ended = wait_for(openai, batch, "completed")
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.request_counts.failed) == (8, 0)


def places(value: object) -> Iterator[object]:
    """Yield copies of a JSON value, each with U+0000 in one more of its texts and keys."""
    if isinstance(value, str):
        yield f"{value[:1]}\0{value[1:]}"
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from ([*value[:index], spoiled, *value[index + 1 :]] for spoiled in places(each))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield {f"{name}\0" if name == key else name: kept for name, kept in value.items()}
            yield from (value | {key: spoiled} for spoiled in places(each))


FULL = line(
    "full",
    extra="x",
    **body(
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}]}],
        metadata={"order": "42"},
        stop=["end"],
        user="u",
        logit_bias={"5": 1},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        tools=[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
        job={"service_class": "batch"},
    ),
)


@pytest.mark.parametrize("encryption_keys", ["", "k1:"], ids=["plain", "sealed"])
def test_a_line_with_a_nul_fails_alone_wherever_it_is(
    settings: Settings,
    model: ModelVersion,
    key: str,
    redis_client: redis.Redis,
    encryption_keys: str,
    turned_seal: None,
) -> None:
    spoiled = [json.dumps(each).encode() for each in places(FULL)]
    # As itself it is in no JSON, and as these characters it is no U+0000.
    spoiled += [json.dumps(line("raw\0")).replace("\\u0000", "\0").encode(), b'{"custom_id": "cut\0']
    good = [json.dumps(line(f"good {number} \\u0000")).encode() for number in range(3)]
    content = b"\n".join([good[0], *spoiled[:40], good[1], *spoiled[40:], good[2]])
    settings = settings.model_copy(update={"encryption_keys": encryption_keys})
    db = Database(settings.database_url, application_name="tests", seal=open_seal(settings))
    worker = ScriptedWorker(db, redis_client, "tiny@1")
    with (
        serving(settings) as server,
        worker.serve(lambda _: ["ok"]),
        OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as openai,
    ):
        ended = wait_for(openai, make(openai, content), "completed")
        output, errors = read(openai, ended.output_file_id), read(openai, ended.error_file_id)
    db.close()
    assert [each["custom_id"] for each in output] == [f"good {number} \\u0000" for number in range(3)]
    assert len(errors) == len(spoiled) > 50
    assert {(each["response"]["status_code"], each["response"]["body"]["error"]["code"]) for each in errors} == {
        (400, "invalid_value")
    }
    assert all("U+0000" in each["response"]["body"]["error"]["message"] for each in errors)
    assert {each["custom_id"] for each in errors} == {
        "full",
        "f\0ull",
        f"line_{len(spoiled) + 1}",
        f"line_{len(spoiled) + 2}",
        *(f"line_{number}" for number, each in enumerate(spoiled[:2], 2) if b'"custom_id"' not in each),
    }


def test_a_line_that_cannot_be_stored_fails_alone_for_whatever_reason(
    openai: OpenAI, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: Connection, jobs: Sequence[NewJob], seal: Seal) -> object:
        if any(job.metadata.get("is") == "bad" for job in jobs):
            raise InvalidRequest("a value cannot be stored")
        return accept_within(connection, jobs, seal)

    monkeypatch.setattr(batch_steps, "accept_within", refuse)
    lines = [
        line(f"r{number}", **body(metadata={"is": "bad" if number in (3, 4, 9) else "good"})) for number in range(10)
    ]
    with worker.serve(lambda _: ["ok"]):
        ended = wait_for(openai, make(openai, lines), "completed")
    assert [each["custom_id"] for each in read(openai, ended.error_file_id)] == ["r3", "r4", "r9"]
    assert len(read(openai, ended.output_file_id)) == 7


def test_so_many_batches_may_live_at_a_time(
    openai: OpenAI,
    api: httpx2.Client,
    make_client: MakeClient,
    db: Database,
    tenant: str,
    key: str,
    worker: ScriptedWorker,
) -> None:
    set_limits(db, tenant, None, Limits(live_batches=5), set_by=SetBy.OPERATOR, actor="tests")
    set_limits(db, tenant, f"key_{key.split('_')[1]}", Limits(live_batches=4), set_by=SetBy.OPERATOR, actor="tests")
    file = openai.files.create(file=("input.jsonl", json.dumps(line("r")).encode()), purpose="batch")

    def ask(number: int) -> httpx2.Response:
        asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id}
        return api.post("/v1/batches", json=asked, headers={"Idempotency-Key": f"k{number}"})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 8
    made = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert "this key has 4 batches" in error_of(refused)["message"]
    assert refused.headers["retry-after"] == "10"
    assert ask(made[0]).json()["id"] == answers[made[0]].json()["id"], "the same one again is no more"
    second = make_client(api_keys.create_key(db, tenant, "second", ["jobs:write"], actor="tests"))
    asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id}
    assert second.post("/v1/batches", json=asked).status_code == 200
    full = second.post("/v1/batches", json=asked | {"metadata": {"n": "2"}})
    assert (full.status_code, "organization has 5" in full.text) == (429, True)
    assert api.get("/v1/organization/limits").json()["used"]["live_batches"] == 5
    with worker.serve(lambda _: ["ok"]):
        for batch in openai.batches.list():
            wait_for(openai, batch, "completed")
    assert ask(100).status_code == 200, "there is room when one has ended"


def test_long_steps_of_one_tenant_hold_up_no_other(
    openai: OpenAI, server: ApiServer, tenant: str, other_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    real = batch_validation.validate

    def validate(
        db: Database, blobs: Blobs, lines: LineReader, limits: Settings, batch: StoredBatch
    ) -> Generator[None]:
        begun.append(batch.id)
        while batch.tenant_id == tenant:
            yield
        yield from real(db, blobs, lines, limits, batch)

    monkeypatch.setattr(batch_keeper, "validate", validate)
    for _ in range(MAX_LONG_TASKS + 1):
        make(openai, [line("a")])
    processes.wait_for(lambda: len(begun) == MAX_LONG_TASKS, "as many as one tenant may have")
    with OpenAI(base_url=f"{server.url}/v1", api_key=other_key, max_retries=0, timeout=60) as other:
        wait_for(other, make(other, [line("b")]), "in_progress")
    assert len(begun) == MAX_LONG_TASKS + 1


def test_a_batch_is_counted_after_the_one_that_is_being_made(
    openai: OpenAI, api: httpx2.Client, db: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limits(db, tenant, None, Limits(live_batches=1), set_by=SetBy.OPERATOR, actor="tests")
    file = openai.files.create(file=("input.jsonl", json.dumps(line("r")).encode()), purpose="batch")
    check_live, counted, may_commit = batches._check_live, threading.Event(), threading.Event()

    def check_and_stay(connection: Connection, tenant_id: str, new: batches.NewBatch) -> None:
        check_live(connection, tenant_id, new)
        if not counted.is_set():
            counted.set()
            may_commit.wait(2.0)

    def ask(number: int) -> int:
        asked = {"endpoint": URL, "completion_window": "24h", "input_file_id": file.id, "metadata": {"n": str(number)}}
        return api.post("/v1/batches", json=asked).status_code

    monkeypatch.setattr(batches, "_check_live", check_and_stay)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, 1)
        assert counted.wait(20)
        second = pool.submit(ask, 2)
        time.sleep(0.5)
        may_commit.set()
        assert (first.result(), second.result()) == (200, 429)
