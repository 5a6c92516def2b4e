"""Jobs of several steps over HTTP: what is stored, what is refused, and what their owner sees."""

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text

from headrace.features.flows.store.added import Added, AddedStep
from headrace.features.policy import policies
from headrace.producer_api.reads.job_loader import restored
from headrace.store.db.database import Database
from headrace.store.jobs.jobs import get as get_job
from headrace.store.jobs.jobs import list_steps
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.payloads.step_payload import REFERENCES
from headrace.store.tenants.quotas import QuotaUsage, usage_of
from headrace.store.tenants.tenant_limits import Limits, SetBy, set_limits
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import bury, error_of, num_jobs, parse, split, streaming
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker


def of(path: str) -> dict[str, str]:
    return {"$from": path}


def flow(**changes: Any) -> dict[str, Any]:
    """A flow of two steps: the second one gets the text of the first."""
    first = {"name": "first", "model": "tiny", "input": {"prompt": of("input.text")}, "sampling": {"max_tokens": 8}}
    second = {
        "name": "second",
        "model": "tiny",
        "needs": ["first"],
        "input": {"messages": [{"role": "user", "content": of("first.output.text")}]},
        "sampling": {"max_tokens": 4},
    }
    return {"input": {"text": "a long story"}, "steps": [first, second], **changes}


@pytest.mark.parametrize("times", [2, 16_000])
def test_what_references_stand_for_is_counted_before_anything_is_copied(
    api: httpx2.Client, db: Database, times: int
) -> None:
    value = ["x" * 500_000] * (2 if times == 2 else 1)
    steps = [{"name": "one", "task": "embed", "model": "tiny", "input": {"texts": [of("input.value")] * times}}]
    tracemalloc.start()
    try:
        refused = api.post("/v1/jobs", json={"input": {"value": value}, "steps": steps})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (refused.status_code, error_of(refused)["param"]) == (400, "steps[0].input"), refused.text
    assert peak < 100 << 20, peak
    assert num_jobs(db) == 0


@pytest.fixture
def submitted(api: httpx2.Client) -> dict[str, Any]:
    answer = api.post("/v1/jobs", json=flow(metadata={"order": "1"}, webhook=None))
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


def read(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    body: dict[str, Any] = api.get(f"/v1/jobs/{job_id}").json()
    return body


def test_steps_are_shown_with_their_job_and_the_last_one_is_its_answer(
    api: httpx2.Client, worker: ScriptedWorker, submitted: dict[str, Any]
) -> None:
    assert (submitted["task"], submitted["status"], submitted["metadata"]) == ("flow", "queued", {"order": "1"})
    steps = {step["name"]: step["job_id"] for step in read(api, submitted["id"])["steps"]}
    attempt = worker.claim(steps["first"])
    assert attempt.claim.payload["input"] == {"prompt": "a long story"}
    assert read(api, submitted["id"])["status"] == "running"
    worker.say(attempt, "short")
    worker.succeed(attempt)
    attempt = worker.claim(steps["second"])
    worker.say(attempt, "very ", "short")
    worker.succeed(attempt)
    job = read(api, submitted["id"])
    assert (job["status"], job["output"]) == ("succeeded", {"text": "very short", "finish_reason": "stop"})
    assert [(step["name"], step["status"], step["output"]["text"]) for step in job["steps"]] == [
        ("first", "succeeded", "short"),
        ("second", "succeeded", "very short"),
    ]
    assert job["usage"]["output_tokens"] == 3
    assert read(api, steps["first"])["parent_id"] == submitted["id"]
    listed = api.get("/v1/jobs").json()["data"]
    assert [one["id"] for one in listed] == [submitted["id"]]
    for filters, number in (({"parent_id": submitted["id"]}, 2), ({"steps": "true"}, 3), ({"parent_id": "job_0"}, 0)):
        assert len(api.get("/v1/jobs", params=filters).json()["data"]) == number
    with api.stream("GET", f"/v1/jobs/{submitted['id']}/events") as stream:
        text = stream.read().decode()
    assert text.count("event: job.delta") == 2
    assert "event: job.succeeded" in text


def test_the_first_step_is_announced_when_the_job_is_accepted(
    submitted: dict[str, Any], redis_client: redis.Redis, db: Database
) -> None:
    wait_for(lambda: redis_client.llen("tiny@1") == 1, "its hint is in the queue")
    with db.begin() as connection:
        announced = connection.execute(text("SELECT step FROM jobs WHERE announced_at IS NOT NULL")).scalars().all()
    assert (announced, submitted["status"]) == (["first"], "queued")


def test_the_body_of_a_job_with_steps_makes_it_again(
    api: httpx2.Client, db: Database, tenant: str, submitted: dict[str, Any]
) -> None:
    body = api.get(f"/v1/jobs/{submitted['id']}/request").json()["body"]
    assert [step["model"] for step in body["steps"]] == ["tiny@1", "tiny@1"]
    assert body["steps"][0]["input"] == {"prompt": "a long story"}
    assert body["steps"][1]["input"]["messages"][0]["content"] == of("first.output.text")
    again = api.post("/v1/jobs", json=body)
    assert again.status_code == 202, again.text
    (_, second) = list_steps(db, tenant, again.json()["id"])
    assert [*second.payload[REFERENCES].values()] == ["first.output.text"]


def test_values_go_back_into_calls_of_tools_with_escapes(api: httpx2.Client, db: Database, tenant: str) -> None:
    first, second = flow()["steps"]
    second["input"] |= {"tools": [{"type": "function", "function": {"name": "now"}}]}
    sent = api.post("/v1/jobs", json=flow(steps=[first, second])).json()["id"]
    stored = get_job(db, tenant, sent).payload
    assert (stored["tool_style"], stored["sampling"]["max_tokens"]) == ("json", 4)
    vault = {"values": {"<NAME_1>": 'Ann "A."'}}
    ended = replace(get_job(db, tenant, sent), payload=stored | {"policy": {"vault": vault}})
    ended = replace(ended, output={"text": '{"name": "now", "arguments": {"who": "<NAME_1>"}}'})
    assert json.loads((restored(ended).output or {})["text"])["arguments"] == {"who": 'Ann "A."'}


@some_of(
    2,
    ("changes", "param"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [{**flow()["steps"][0], "needs": ["nothing"]}]}, "steps[0].needs[0]"),
        ({"steps": [{**flow()["steps"][0], "sampling": {"max_tokens": "many"}}]}, "steps[0].sampling.max_tokens"),
        (
            {"steps": [{**flow()["steps"][0], "sampling": {"max_tokens": CONTEXT_WINDOW}}]},
            "steps[0].sampling.max_tokens",
        ),
        ({"steps": [{**flow()["steps"][0], "model": "nothing"}]}, "steps[0].model"),
        ({"input": {"texts": []}}, "steps[0]"),
        ({"max_steps": 3}, "max_steps"),
        ({"steps": [{**flow()["steps"][0], "name": f"s{number}"} for number in range(17)]}, "steps"),
    ],
)
def test_a_job_with_a_mistake_is_refused_and_nothing_is_stored(
    api: httpx2.Client, changes: dict[str, Any], param: str
) -> None:
    answer = api.post("/v1/jobs", json=flow(**changes))
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.json()["error"]["param"] == param
    assert api.get("/v1/jobs").json()["data"] == []


def test_the_same_key_gives_the_same_job(api: httpx2.Client) -> None:
    sent = [api.post("/v1/jobs", json=flow(), headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert sent[0].json()["id"] == sent[1].json()["id"]
    assert sent[1].headers["Idempotent-Replayed"] == "true"
    other = api.post("/v1/jobs", json=flow(input={"text": "other"}), headers={"Idempotency-Key": "k"})
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_another_tenant_sees_neither_the_job_nor_its_steps(
    api: httpx2.Client, make_client: MakeClient, other_key: str, submitted: dict[str, Any]
) -> None:
    other = make_client(other_key)
    ids = [submitted["id"], *(step["job_id"] for step in read(api, submitted["id"])["steps"])]
    assert {other.get(f"/v1/jobs/{job_id}").status_code for job_id in ids} == {404}
    assert {other.post(f"/v1/jobs/{job_id}/cancel").status_code for job_id in ids} == {404}
    assert read(api, submitted["id"])["status"] == "queued"


def test_a_cancel_is_of_the_whole_job(api: httpx2.Client, worker: ScriptedWorker, submitted: dict[str, Any]) -> None:
    first, second = (step["job_id"] for step in read(api, submitted["id"])["steps"])
    attempt = worker.claim(first)
    assert api.post(f"/v1/jobs/{second}/cancel").status_code == 409
    assert api.post(f"/v1/jobs/{submitted['id']}/cancel").json()["status"] == "running"
    worker.obey_cancel(attempt)
    job = read(api, submitted["id"])
    assert (job["status"], [step["status"] for step in job["steps"]]) == ("cancelled", ["cancelled", "cancelled"])


def test_a_replay_runs_all_steps_again(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, submitted: dict[str, Any]
) -> None:
    first, second = (step["job_id"] for step in read(api, submitted["id"])["steps"])
    attempt = worker.claim(first)
    worker.say(attempt, "short")
    worker.succeed(attempt)
    bury(db, second)
    assert [letter["id"] for letter in api.get("/v1/dead_letters").json()["data"]] == [submitted["id"]]
    made = api.post(f"/v1/dead_letters/{submitted['id']}/replay").json()
    assert api.post(f"/v1/dead_letters/{submitted['id']}/replay").json()["job_id"] == made["job_id"]
    again = read(api, made["job_id"])
    assert (again["task"], again["metadata"]) == ("flow", {"order": "1"})
    for step, said in zip(again["steps"], ("short", "shorter"), strict=True):
        attempt = worker.claim(step["job_id"])
        worker.say(attempt, said)
        worker.succeed(attempt)
    ended = read(api, made["job_id"])
    assert (ended["status"], ended["output"]["text"]) == ("succeeded", "shorter")


def test_a_step_that_is_added_goes_on_with_the_stream_of_the_job(
    api: httpx2.Client, worker: ScriptedWorker, submitted: dict[str, Any]
) -> None:
    steps = {step["name"]: step["job_id"] for step in read(api, submitted["id"])["steps"]}
    attempt = worker.claim(steps["first"])
    worker.succeed(attempt)
    attempt = worker.claim(steps["second"])
    payload = {**attempt.claim.payload, REFERENCES: {}}
    again = AddedStep("second:1", "generate", "tiny", 1, payload, 1, 5, ("second",))
    with streaming(api, submitted["id"]) as stream:
        worker.say(attempt, "I ", "ask")
        assert stream.until("job.delta")[-1].id == "1-1.3"
        assert stream.next().id == "1-2.3"
        worker.succeed(attempt, added=Added((again,), "second:1"))
        added = {step["name"]: step for step in read(api, submitted["id"])["steps"]}["second:1"]
        assert (added["status"], added["needs"]) == ("queued", ["second"])
        attempt = worker.claim(added["job_id"])
        worker.say(attempt, "the ", "answer")
        restarted = stream.until("job.restarted")[-1]
        assert (restarted.id.partition(".")[0], restarted.data["kept"]) == ("2-0", 0)
        assert "".join(event.data.get("text", "") for event in stream.until("job.delta")) == "the "
        worker.succeed(attempt)
        stream.until("job.succeeded")
    assert read(api, submitted["id"])["output"]["text"] == "the answer"
    for cursor in ("1-1.3", "1-2.4", "2-0.4"):
        with streaming(api, submitted["id"], cursor) as stream:
            events = parse(stream.rest())
        ids = [event.id.partition(".")[0] for event in events if event.name.startswith("job.")]
        assert ids == [*(["2-0"] if cursor[0] == "1" else []), "2-1", "2-2", "2-3"]


def test_events_of_steps_come_once_and_in_order_from_every_cursor(
    api: httpx2.Client, worker: ScriptedWorker, submitted: dict[str, Any]
) -> None:
    steps = {step["name"]: step["job_id"] for step in read(api, submitted["id"])["steps"]}
    with streaming(api, submitted["id"]) as stream:
        attempt = worker.claim(steps["first"])
        worker.hand_back(attempt)
        attempt = worker.claim(steps["first"])
        worker.succeed(attempt)
        assert [event.id for event in stream.until("step.finished")][-1] == "0-0.3"
        attempt = worker.claim(steps["second"])
        worker.say(attempt, "very ", "short")
        worker.succeed(attempt)
        live = stream.rest()
    ended = [event for event in parse(live) if event.name == "step.finished"]
    assert [(event.data["name"], event.data["state"]) for event in ended] == [
        ("first", "succeeded"),
        ("second", "succeeded"),
    ]
    assert (ended[1].data["job_id"], ended[1].data["usage"]["output_tokens"]) == (steps["second"], 2)
    with streaming(api, submitted["id"]) as stream:
        whole = stream.rest()
    events = parse(whole)
    assert [(event.name, event.id) for event in events] == [
        ("job.queued", "0-0"),
        ("step.started", "0-0.1"),
        ("step.started", "0-0.2"),
        ("step.finished", "0-0.3"),
        ("step.started", "0-0.4"),
        ("job.started", "1-0.4"),
        ("job.delta", "1-1.4"),
        ("job.delta", "1-2.4"),
        ("step.finished", "1-2.5"),
        ("job.succeeded", "1-3.5"),
    ]
    for index, event in enumerate(events[:-1], 1):
        with streaming(api, submitted["id"], event.id) as stream:
            assert stream.rest() == b"".join(split(whole)[index:])
    done = api.get(f"/v1/jobs/{submitted['id']}/events", headers={"Last-Event-ID": events[-1].id})
    assert done.status_code == 204


def test_a_policy_replaces_a_value_alike_in_every_step_before_it_is_stored(
    api: httpx2.Client, db: Database, tenant: str
) -> None:
    rule = {"id": "mail", "action": "redact", "stage": "input", "kinds": ["email"]}
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "tests")
    first, second = flow()["steps"]
    second["input"] = {"prompt": of("input.text")}
    body = flow(input={"text": "write to ann@example.com"}, steps=[first, second])
    wait_for(lambda: _placeholders(api, db, tenant, body) == ["write to <EMAIL_1>"] * 2, "the policy is in force")
    with db.begin() as connection:
        newest = connection.execute(text("SELECT max(id) FROM jobs WHERE task = 'flow'")).scalar_one()
        rows = connection.execute(
            text("SELECT CAST(jobs AS text) FROM jobs WHERE :id IN (id, parent_id)"), {"id": newest}
        )
        assert [row[0] for row in rows if "ann@" in row[0]] == []


def _placeholders(api: httpx2.Client, db: Database, tenant: str, body: dict[str, Any]) -> list[str]:
    """Submit, and return the stored prompts of the steps. A policy is read a moment after it was written."""
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return [step.payload["input"]["prompt"] for step in list_steps(db, tenant, answer.json()["id"])]


def test_a_limit_of_open_jobs_counts_the_job_once(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    set_limits(db, tenant, None, Limits(concurrent_jobs=2), set_by=SetBy.OPERATOR, actor="tests")
    job_id, other = (api.post("/v1/jobs", json=flow()).json()["id"] for _ in range(2))
    refused = api.post("/v1/jobs", json=flow())
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    steps = {step["name"]: step["job_id"] for step in read(api, job_id)["steps"]}
    for name in ("first", "second"):
        # While a step runs and another one waits, it is one job.
        assert usage_of(db, tenant).jobs == 2
        worker.succeed(worker.claim(steps[name]))
    assert usage_of(db, tenant).jobs == 1
    assert api.post("/v1/jobs", json=flow()).status_code == 202
    assert read(api, other)["status"] == "queued"


def test_a_limit_of_queued_tokens_counts_each_step(api: httpx2.Client, db: Database, tenant: str) -> None:
    """With its prompt ("a long story", a byte a token) and its `max_tokens`."""
    cost = len("a long story") + 8
    set_limits(db, tenant, None, Limits(queued_tokens=3 * cost), set_by=SetBy.OPERATOR, actor="tests")
    first = flow()["steps"][0]
    both = [{**first, "name": name, "stream": name == "b"} for name in ("a", "b")]
    assert api.post("/v1/jobs", json=flow(steps=both)).status_code == 202
    refused = api.post("/v1/jobs", json=flow(steps=both))
    assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
    assert usage_of(db, tenant) == QuotaUsage(jobs=1, queued_tokens=2 * cost)
    assert len(api.get("/v1/jobs", params={"steps": "true"}).json()["data"]) == 3, "nothing of the refused job is there"


def test_submits_and_cancels_are_in_timelines_replays_and_deletions_in_the_audit_log(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    cancelled, buried = (api.post("/v1/jobs", json=flow()).json()["id"] for _ in range(2))
    assert api.post(f"/v1/jobs/{cancelled}/cancel").status_code == 200
    noted = [event["kind"] for event in api.get(f"/v1/jobs/{cancelled}/timeline").json()["events"]]
    assert (noted[0], noted[-1]) == ("queued", "cancelled")
    bury(db, read(api, buried)["steps"][0]["job_id"])
    assert api.post(f"/v1/dead_letters/{buried}/replay").status_code == 202
    assert api.delete(f"/v1/jobs/{cancelled}").status_code == 200
    with db.begin() as connection:
        sql = text("SELECT action, resource FROM audit_log WHERE tenant_id = :tenant AND resource LIKE 'job_%'")
        found = {tuple(row) for row in connection.execute(sql, {"tenant": tenant})}
    assert found == {("dead_letter.replayed", buried), ("job.purged", cancelled)}, "a step has no row of its own"
