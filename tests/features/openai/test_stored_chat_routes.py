"""Stored chat completions, through the official client, with encryption at rest."""

from typing import Any

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI
from sqlalchemy import text

from headrace.features.openai.stored_chats import job_id_of
from headrace.features.retention.retention import Retention, sweep, sweep_marked
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import stream_key
from tests.producer_api.calling import CHAT, error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "name": "ann", "content": "hi"}]


@pytest.fixture
def settings(settings: Settings, turned_seal: None) -> Settings:
    return settings.model_copy(update={"encryption_keys": "k1:"})


def chat(openai: OpenAI, worker: ScriptedWorker, *pieces: str, **fields: Any) -> Any:
    asked = {"model": "tiny", "messages": MESSAGES, "store": True} | fields
    with worker.serve(lambda _: pieces or ["water"]):
        made = openai.chat.completions.create(**asked)
        return list(made)[-1] if fields.get("stream") else made


def ids(found: Any) -> list[str]:
    return [each.id for each in found]


def grow_old(db: Database) -> None:
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET completed_at = now() - interval '1 day'"))


def test_a_stored_chat_is_read_changed_and_deleted(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str, redis_client: redis.Redis
) -> None:
    made = chat(openai, worker, "wa", "ter", metadata={"order": "42"})
    log = stream_key(job_id_of(made.id))
    assert redis_client.exists(log)
    found = openai.chat.completions.retrieve(made.id)
    assert found.to_dict() == made.to_dict() | {"metadata": {"order": "42"}}
    messages = openai.chat.completions.messages.list(made.id).data
    assert [(m.role, m.content) for m in messages] == [("system", "Be brief."), ("user", "hi")]
    assert ids(openai.chat.completions.messages.list(made.id, order="desc", limit=1)) == ids(messages[::-1])
    changed = openai.chat.completions.update(made.id, metadata={"rating": "good"})
    assert changed.to_dict()["metadata"] == {"rating": "good"}
    assert ids(openai.chat.completions.list(metadata={"rating": "good"})) == [made.id]
    assert ids(openai.chat.completions.list(metadata={"order": "42"})) == []
    with db.begin() as connection:
        assert "good" not in str(connection.execute(text("SELECT metadata FROM jobs")).one())
    assert openai.chat.completions.update(made.id, metadata=None).to_dict()["metadata"] == {}
    deleted = openai.chat.completions.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "chat.completion.deleted")
    assert not redis_client.exists(log), "the copy of its answer in Redis goes with it"
    for call in (openai.chat.completions.retrieve, openai.chat.completions.delete):
        with pytest.raises(sdk.NotFoundError):
            call(made.id)
    with db.begin() as connection:
        row = connection.execute(text("SELECT payload, output, metadata, state FROM jobs")).one()
    assert tuple(row) == ({}, None, {}, "succeeded"), "as if the job was deleted"
    deeds = [entry.resource for entry in audit.list_entries(db, tenant) if entry.action == "chat.deleted"]
    assert deeds == [made.id]


def test_pages_have_every_stored_chat_of_a_model_once(openai: OpenAI, worker: ScriptedWorker, db: Database) -> None:
    register_version(
        db, model="tiny", runner="fake", source="fake:tiny", digest="1" * 64, dtype="float32", context_window=512,
        files={}, actor="tests",
    )  # fmt: skip
    made = [chat(openai, worker, model="tiny@1", metadata={"n": str(number)}).id for number in range(3)]
    streamed = chat(openai, worker, model="tiny@1", stream=True).id
    for store in (None, False):
        chat(openai, worker, model="tiny@1", store=store)
    everything = [*made, streamed]
    assert ids(openai.chat.completions.list()) == everything, "oldest first, as OpenAI has it"
    assert ids(openai.chat.completions.list(limit=3)) == everything, "over two pages"
    assert ids(openai.chat.completions.list(order="desc", limit=1)) == everything[::-1]
    assert ids(openai.chat.completions.list(after=made[1])) == everything[2:]
    assert ids(openai.chat.completions.list(metadata={"n": "1"})) == made[1:2]
    for model, expected in (("tiny", everything), ("tiny@1", everything), ("tiny@2", []), ("tiny@none", []), ("x", [])):
        assert ids(openai.chat.completions.list(model=model)) == expected, model


def test_what_is_not_stored_or_has_no_answer_is_not_there(
    api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    native, running = submit(api), submit(api)
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET is_stored_chat = true WHERE id = :id"), {"id": running})
    for job_id in (native, running):
        assert api.get(f"/v1/chat/completions/chatcmpl-{job_id[4:]}").status_code == 404
    worker.fail(worker.claim(running), "out_of_memory", "too large")
    assert api.get(f"/v1/chat/completions/chatcmpl-{running[4:]}").status_code == 404
    assert api.get("/v1/chat/completions").json()["data"] == []


def test_contents_are_kept_as_those_of_jobs_are(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    stored, plain, unkept = (chat(openai, worker, store=store).id for store in (True, None, False))
    grow_old(db)
    assert sweep_marked(db, 100).job_ids == (f"job_{unkept[9:]}",), "`store` false is a wish for erasure"
    sweep(db, tenant, Retention(inputs_s=3600), 100)
    assert api.get(f"/v1/jobs/job_{plain[9:]}").status_code == 200
    assert openai.chat.completions.retrieve(stored).choices[0].message.content == "water"
    path = f"/v1/chat/completions/{stored}"
    for refused in (api.get(f"{path}/messages"), api.post(path, json={"metadata": {}})):
        assert (refused.status_code, error_of(refused)["code"]) == (410, "result_expired"), "its input is erased"
    sweep(db, tenant, Retention(outputs_s=3600), 100)
    refused = api.get(path)
    assert (refused.status_code, error_of(refused)["code"]) == (410, "result_expired")
    assert api.get("/v1/chat/completions").json()["data"] == []


def test_another_tenants_chats_are_not_there(
    openai: OpenAI, worker: ScriptedWorker, make_client: MakeClient, other_key: str
) -> None:
    made = chat(openai, worker).id
    stranger, path = make_client(other_key), f"/v1/chat/completions/{made}"
    calls = [
        stranger.get(path),
        stranger.post(path, json={"metadata": {"a": "b"}}),
        stranger.delete(path),
        stranger.get(f"{path}/messages"),
    ]
    assert [(one.status_code, error_of(one)["code"]) for one in calls] == [(404, "not_found")] * 4
    assert stranger.get("/v1/chat/completions").json()["data"] == []
    assert openai.chat.completions.retrieve(made).to_dict()["metadata"] == {}


def test_malformed_requests_are_refused_in_one_shape(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker
) -> None:
    url = "/v1/chat/completions"
    path = f"{url}/{chat(openai, worker).id}"
    bad = [api.post(url, json=CHAT | {"store": value}) for value in ("maybe", 7, [], {})]
    bad += [api.get(url, params=[one]) for one in (("limit", "0"), ("limit", "x"), ("order", "up"), ("metadata", "x"),
            ("metadata[]", "x"), ("status", "x"), ("state", "x"))]  # fmt: skip
    bad += [api.get(f"{path}/messages", params=one) for one in ({"limit": 101}, {"order": "x"}, {"after": "msg"})]
    long, many = {"a": "x" * 513}, {str(n): "" for n in range(17)}
    bad += [api.post(path, json=one) for one in (None, [], {}, {"metadata": 1}, {"metadata": {"a": []}})]
    bad += [api.post(path, json={"metadata": one}) for one in (long, many, {"": "x"}, {"a": "\0"}, {"a": None})]
    for response in bad:
        assert response.status_code == 400, (str(response.request.url), response.request.content, response.text)
        assert error_of(response)["code"] in ("invalid_value", "unsupported_parameter")
    for id_ in ("x", "chatcmpl-", "chatcmpl-%00", "job_1", "chatcmpl-" + "9" * 500):
        for response in (api.get(f"{url}/{id_}"), api.delete(f"{url}/{id_}"), api.get(url, params={"after": id_})):
            assert response.status_code in (400, 404) or response.json()["data"] is not None, id_
            assert response.status_code < 500
    assert api.post(path, json={"metadata": {"n": 5, "yes": True}}).json()["metadata"] == {"n": "5", "yes": "true"}
