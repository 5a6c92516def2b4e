"""A tenant's policy, set over the API: what it takes out of an input is nowhere, and what it blocks is nothing."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import redis
from openai import OpenAI
from sqlalchemy import text

from headrace.features.policy.input_policy import ActivePolicy, active_policies
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.submission.text_guard import KEEP_S, TextGuards
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput, GenerateRequest
from headrace.store.tenants import api_keys
from tests.cases import some_of
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import serving
from tests.stored import everything_stored

RULES: list[dict[str, Any]] = [
    {"id": "no-cards", "kinds": ["card"], "action": "block", "stage": "input"},
    {"id": "pii", "kinds": ["email", "phone"], "action": "redact", "stage": "input"},
]
RAW = "ann.unique@example.com"
CARD = "4526018159083012"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A server with a key for digests, as names need that a policy takes something out of."""
    return settings.model_copy(update={"digest_keys": ("d" * 32,)})


def put(api: httpx2.Client, rules: list[dict[str, Any]], model: str | None = None) -> dict[str, Any]:
    response = api.put("/v1/policies", json={"model": model, "document": {"rules": rules}})
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_what_is_redacted_is_nowhere_whichever_way_it_came(
    api: httpx2.Client, openai: OpenAI, worker: ScriptedWorker, db: Database, redis_client: redis.Redis, tenant: str
) -> None:
    put(api, RULES)
    ask: Any = [{"role": "user", "content": f"I am {RAW}, call +49 30 901820"}, {"role": "user", "content": RAW}]
    with worker.serve(lambda _: ["x"]):
        openai.chat.completions.create(model="tiny", messages=ask, metadata={"who": RAW})
        openai.completions.create(model="tiny", prompt=f"From: {RAW}")
        made = openai.responses.create(model="tiny", input=f"Mail {RAW}", instructions=f"You are {RAW}")
    api.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": RAW}, "metadata": {"by": RAW}})
    assert RAW not in everything_stored(db, redis_client)
    found = {job.id: job for job in jobs.list_jobs(db, tenant)}
    chat = next(job for job in found.values() if job.metadata.get("who"))
    assert [one["content"] for one in chat.payload["input"]["messages"]] == [
        "I am <EMAIL_1>, call <PHONE_1>",
        "<EMAIL_1>",
    ]
    assert chat.metadata == {"who": "<EMAIL_1>"}
    assert openai.responses.retrieve(made.id).instructions == "You are <EMAIL_1>"


FUNCTION: dict[str, Any] = {"name": "f", "description": RAW, "parameters": {"title": RAW, "properties": {RAW: {}}}}
FIELDS: list[dict[str, Any]] = [
    {"metadata": {"name": RAW, "id": RAW}},
    {"metadata": {RAW: "x"}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": RAW}]}]},
    {"messages": [{"role": "user", "content": "x", "name": RAW}]},
    {"tools": [{"type": "function", "function": FUNCTION}]},
    {"stop": [RAW]},
    {"user": RAW},
    {"safety_identifier": RAW},
    {"prompt_cache_key": RAW},
    {"job": {"tags": [RAW]}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": RAW}}}},
]


def test_no_field_of_a_request_is_a_way_around_it(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, redis_client: redis.Redis, tenant: str
) -> None:
    put(api, RULES)
    with worker.serve(lambda _: ["x"]):
        for extra in FIELDS:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **extra}
            answer = api.post("/v1/chat/completions", json=body)
            assert answer.status_code in (200, 400), answer.text
            assert RAW not in everything_stored(db, redis_client), extra


SHOWN: list[dict[str, Any]] = [
    {"instructions": RAW},
    {"metadata": {"name": RAW}},
    {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"to": RAW})}]},
    {"tools": [{"type": "function", **FUNCTION}]},
    {"tools": [{"type": "function", "name": "f", "description": RAW, "parameters": {"title": RAW}}]},
    {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "f", "note": RAW}},
    {"text": {"format": {"type": "json_schema", "name": RAW, "schema": {"type": "object"}}}},
    {"text": {"format": {"type": "json_schema", "name": "n", "description": RAW, "schema": {"type": "object"}}}},
    {"user": RAW},
    {"safety_identifier": RAW},
    {"prompt_cache_key": RAW},
    {"stop": [RAW]},
]


def test_no_field_of_a_response_is_a_way_around_it(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, redis_client: redis.Redis
) -> None:
    put(api, RULES)
    with worker.serve(lambda _: ["x"]):
        for extra in SHOWN:
            answer = api.post("/v1/responses", json={"model": "tiny", "input": "x", "max_output_tokens": 1, **extra})
            assert answer.status_code in (200, 400), answer.text
            assert RAW not in everything_stored(db, redis_client), extra


def test_what_is_embedded_is_guarded(
    api: httpx2.Client, encoder: ModelVersion, db: Database, redis_client: redis.Redis, tenant: str
) -> None:
    put(api, RULES)
    asked = {"task": "embed", "model": encoder.model, "user": RAW, "metadata": {RAW: RAW}}
    made = api.post("/v1/jobs", json={**asked, "input": {"texts": ["x", f"to {RAW}", RAW.upper()]}})
    assert made.status_code == 202, made.text
    assert jobs.get(db, tenant, made.json()["id"]).payload["input"]["texts"] == ["x", "to <EMAIL_1>", "<EMAIL_1>"]
    for given in ({"token_ids": [[1, 2]]}, {"texts": [CARD]}):
        assert api.post("/v1/jobs", json={**asked, "input": given}).status_code == 400
    stored = everything_stored(db, redis_client)
    assert not {RAW, RAW.upper(), CARD} & set(re.findall(r"[\w.]+@[\w.]+|\d{16}", stored))


def test_words_of_the_protocol_are_nobody_s(api: httpx2.Client, worker: ScriptedWorker) -> None:
    """A denied word may be one that every request has."""
    put(
        api, [{"id": "words", "deny": {"phrases": ["user", "system", "function", "type", "medium"]}, "action": "block"}]
    )
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
    with worker.serve(lambda _: ["x"]):
        asked = {"model": "tiny", "input": "x", "tools": [tool], "text": {"verbosity": "medium"}}
        made = api.post("/v1/responses", json=asked)
        assert made.status_code == 200, made.text


def test_what_a_request_is_called_and_whom_it_is_for_are_guarded_too(
    api: httpx2.Client, db: Database, redis_client: redis.Redis
) -> None:
    put(api, RULES)
    ask = {"model": "tiny", "input": {"prompt": "x"}}
    headers = {"Idempotency-Key": RAW, "OpenAI-Project": RAW}
    first, second = (api.post("/v1/jobs", json=ask, headers=headers) for _ in range(2))
    assert (first.status_code, second.json()["id"]) == (202, first.json()["id"])
    blocked = api.post("/v1/jobs", json=ask, headers={"Idempotency-Key": CARD})
    assert (blocked.status_code, error_of(blocked)["param"]) == (400, "Idempotency-Key")
    assert RAW not in everything_stored(db, redis_client)


@pytest.mark.uses("batches")
def test_what_a_batch_says_beside_its_lines_is_guarded_too(
    api: httpx2.Client, openai: OpenAI, db: Database, redis_client: redis.Redis
) -> None:
    put(api, RULES)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    line = {"custom_id": RAW, "method": "POST", "url": "/v1/chat/completions", "body": body}
    odd = {**line, "custom_id": "b", "body": {**body, "messages": [{"role": RAW, "content": "x"}]}}
    odder = {**line, "custom_id": "c", "body": {**body, "job": {RAW: 1}}}
    content = "\n".join(map(json.dumps, (line, odd, odder))).encode()
    file = openai.files.create(file=(f"{RAW}.jsonl", content), purpose="batch")
    assert file.filename.startswith("<EMAIL_1>")
    batch = openai.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": RAW},
        extra_headers={"Idempotency-Key": RAW, "OpenAI-Project": RAW},
    )
    assert batch.metadata == {"for": "<EMAIL_1>"}
    while (batch := openai.batches.retrieve(batch.id)).status == "validating":
        time.sleep(0.02)
    assert batch.errors is not None
    assert [(one.code, one.param, one.line) for one in batch.errors.data or []] == [
        ("policy_blocked_input", "custom_id", 1),
        ("unsupported_parameter", "body.messages[0].role", 2),
        ("unsupported_parameter", "<EMAIL_2>", 3),
    ]
    assert "<EMAIL_1>" in (batch.errors.data or [])[1].message
    assert RAW not in everything_stored(db, redis_client)


def test_the_lines_of_a_batch_are_no_way_around_it(
    api: httpx2.Client, settings: Settings, db: Database, tenant: str, key: str, model: ModelVersion
) -> None:
    put(api, RULES)
    runtime = Runtime(settings)
    try:
        principal = api_keys.authenticate(db, key)
        line = GenerateRequest(model="tiny", input=GenerateInput(prompt=RAW))
        assert runtime.submissions.make_job(principal, line, model).payload["input"] == {"prompt": "<EMAIL_1>"}
        card = GenerateRequest(model="tiny", input=GenerateInput(prompt="4526018159083012"))
        with pytest.raises(InvalidRequest, match="no-cards"):
            runtime.submissions.make_job(principal, card, model)
    finally:
        runtime.db.close()
        runtime.redis.close()


# Parts of the card number, none of four digits: those are found in a random id now and then.
PARTS = ("4526018159083012", "4526 0181", "5908 3012", "59083012")


def test_what_is_blocked_names_the_rule_and_stores_nothing(
    api: httpx2.Client, db: Database, redis_client: redis.Redis
) -> None:
    put(api, RULES)
    for body in (
        {"input": {"prompt": "4526 0181 5908 3012"}},
        {"input": {"prompt": "x"}, "metadata": {"c": "4526018159083012"}},
    ):
        response = api.post("/v1/jobs", json={"model": "tiny", **body})
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "policy_blocked_input")
        assert "no-cards" in error["message"]
        assert not any(part in response.text for part in PARTS)
    assert error_of(api.post("/v1/jobs", json={"model": "tiny", "input": {"token_ids": [1]}}))["param"] == "input"
    assert num_jobs(db) == 0
    stored = everything_stored(db, redis_client)
    assert not any(part in stored for part in PARTS)


@pytest.mark.uses("templates")
def test_a_prompt_template_and_a_user_hold_nothing_that_the_policy_takes_out(
    api: httpx2.Client, db: Database, redis_client: redis.Redis, tenant: str
) -> None:
    put(api, [*RULES, {"id": "ips", "kinds": ["ip_address"], "action": "flag", "stage": "input"}])
    for template, rule in (
        ({"instructions": f"Write to {RAW}"}, "pii"),
        ({"instructions": CARD}, "no-cards"),
        ({"name": f"for-{CARD}", "instructions": "Write"}, "no-cards"),
    ):
        refused = api.post("/v1/prompts", json=template)
        assert (refused.status_code, error_of(refused)["code"]) == (400, "policy_blocked_input")
        assert rule in error_of(refused)["message"]
    made = api.post("/v1/prompts", json={"instructions": "Write to {{whom}}", "variables": ["whom"]}).json()
    noted = api.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": "from 203.0.113.7"}}).json()["policy"]
    assert noted == {
        "model": None,
        "version": 1,
        "flagged": [{"rule": "ips", "kind": "ip_address", "action": "flag", "count": 1}],
    }
    worse = api.post(f"/v1/prompts/{made['id']}/versions", json={"instructions": f"To {RAW}"})
    assert worse.status_code == 400
    for user in (RAW, RAW, "u-17"):
        assert api.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": "x"}, "user": user}).status_code == 202
    assert api.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": "x"}, "user": CARD}).status_code == 400
    with db.begin(tenant_id=tenant) as connection:
        users = connection.execute(text("SELECT user_id FROM jobs ORDER BY id")).scalars().all()
    assert (users[1] == users[2], users[3]) == (True, "u-17")
    assert RAW not in everything_stored(db, redis_client)


def test_a_change_is_a_version_with_an_audit_row_and_ends_with_no_rules(
    api: httpx2.Client, make_client: MakeClient, other_key: str, db: Database, tenant: str
) -> None:
    assert put(api, RULES)["version"] == 1
    assert put(api, RULES[1:], "tiny")["version"] == 1
    assert put(api, [])["version"] == 2
    shown = api.get("/v1/policies").json()["data"]
    assert [(one["model"], one["version"], one["document"]["rules"]) for one in shown] == [
        (None, 2, []),
        ("tiny", 1, RULES[1:]),
    ]
    assert make_client(other_key).get("/v1/policies").json()["data"] == []
    entries = [one for one in audit.list_entries(db, tenant) if one.action == "policy.put"]
    assert [(one.resource, one.detail["version"]) for one in entries] == [
        ("policy:*", 2),
        ("policy:tiny", 1),
        ("policy:*", 1),
    ]
    assert entries[0].before_hash == entries[2].after_hash != entries[0].after_hash
    assert entries[2].before_hash is None
    for entry in entries:
        assert (entry.request_id or "").startswith("req_")
        assert entry.address == "127.0.0.1"
    assert "email" not in str(entries)


def test_the_policy_of_the_model_goes_before_that_of_every_model(db: Database, api: httpx2.Client, tenant: str) -> None:
    now = [0.0]
    parts: Any = SimpleNamespace(db=db, settings=SimpleNamespace(names_model=""))
    book = TextGuards(active_policies(parts), clock=lambda: now[0])
    assert book.in_force(tenant, "tiny") is None
    put(api, RULES)
    put(api, RULES[1:], "tiny")
    assert book.in_force(tenant, "tiny") is None
    now[0] += KEEP_S
    special, general = book.in_force(tenant, "tiny"), book.in_force(tenant, "other")
    assert isinstance(special, ActivePolicy)
    assert isinstance(general, ActivePolicy)
    assert (len(special.policy.document.rules), len(general.policy.document.rules)) == (1, 2)
    assert book.in_force(api_keys.create_tenant(db, "initech"), "tiny") is None
    now[0] += KEEP_S
    assert book.in_force(tenant, "tiny") is special


def test_names_are_found_by_the_model_of_the_settings(
    settings: Settings, model: ModelVersion, key: str, db: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ann:
        def find(self, text: str) -> list[tuple[int, int, str]]:
            return [(found.start(), found.end(), "person") for found in re.finditer("Ann", text)]

    monkeypatch.setattr("headrace.features.policy.input_policy.load_finder", {Path("/names"): Ann()}.__getitem__)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        serving(settings.model_copy(update={"names_model": "/names"})) as server,
        httpx2.Client(base_url=server.url, headers=headers, timeout=60) as api,
    ):
        put(api, [{"id": "names", "kinds": ["person"], "action": "redact", "stage": "input"}])
        made = api.post("/v1/jobs", json={"model": model.model, "input": {"prompt": "Is Ann here?"}})
        assert made.status_code == 202, made.text
    (job,) = jobs.list_jobs(db, tenant)
    assert job.payload["input"]["prompt"] == "Is <PERSON_1> here?"


@some_of(
    2,
    ("rule", "param"),
    [
        ({"restore": True}, "document.rules[0].restore"),
        ({"kinds": ["person"]}, "document"),
        ({"kinds": ["nobody"]}, "document.rules[0].kinds[0]"),
        ({"kinds": [], "deny": {"patterns": ["a+"]}}, "document.rules[0].deny"),
    ],
)
def test_a_rule_that_would_not_be_followed_is_refused(api: httpx2.Client, rule: dict[str, Any], param: str) -> None:
    response = api.put("/v1/policies", json={"document": {"rules": [RULES[1] | rule]}})
    assert (response.status_code, error_of(response)["param"]) == (400, param)
