"""Conversations, through the official client, with encryption at rest."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI
from sqlalchemy import text

from headrace.features.responses import conversations
from headrace.features.responses.stored_responses import job_id_of
from headrace.features.retention.retention import Retention, sweep
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.stored import everything_stored

HELLO: Any = {"type": "message", "role": "user", "content": "xyzzy"}


@pytest.fixture
def settings(settings: Settings, turned_seal: None) -> Settings:
    return settings.model_copy(update={"encryption_keys": "k1:"})


def texts(openai: OpenAI, conversation_id: str, **asked: Any) -> list[str]:
    """The texts of a conversation, oldest first."""
    items: list[Any] = list(openai.conversations.items.list(conversation_id, **{"order": "asc", "limit": 100, **asked}))
    return ["".join(part.text for part in item.content) for item in items]


def ask(openai: OpenAI, worker: ScriptedWorker, conversation_id: str, said: str, **fields: Any) -> Any:
    """Send a turn to a model that answers with what it was given."""

    def answer(payload: dict[str, Any]) -> list[str]:
        return ["<" + " ".join(message["content"] for message in payload["input"]["messages"]) + ">"]

    with worker.serve(answer):
        made = openai.responses.create(model="tiny", input=said, conversation=conversation_id, **fields)
        return list(made)[-1].response if fields.get("stream") else made


def begin(api: httpx2.Client, conversation_id: str, said: str, **fields: Any) -> str:
    """Begin a response in the background, which no worker takes yet; return its id."""
    body = {"model": "tiny", "input": said, "background": True, "conversation": {"id": conversation_id}}
    return str(api.post("/v1/responses", json=body | fields).raise_for_status().json()["id"])


def test_a_conversation_and_its_items(openai: OpenAI, db: Database, redis_client: redis.Redis, tenant: str) -> None:
    made = openai.conversations.create(items=[HELLO], metadata={"topic": "plugh"})
    assert openai.conversations.retrieve(made.id) == made
    assert made.to_dict()["metadata"] == {"topic": "plugh"}
    more: Any = [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("developer", "assistant")]
    added = openai.conversations.items.create(made.id, items=more)
    assert [item.to_dict()["role"] for item in added.data] == ["developer", "assistant"] * 3
    assert texts(openai, made.id, limit=2) == ["xyzzy", *(one["content"] for one in more)], "over four pages"
    newest = openai.conversations.items.list(made.id, limit=1)
    assert (newest.data[0], newest.has_more) == (added.data[-1], True)
    assert openai.conversations.items.retrieve(added.data[0].id or "", conversation_id=made.id) == added.data[0]
    assert openai.conversations.items.delete(added.data[0].id or "", conversation_id=made.id) == made
    assert len(texts(openai, made.id)) == 6
    stored = everything_stored(db, redis_client)
    assert "xyzzy" not in stored
    assert "plugh" not in stored
    assert openai.conversations.update(made.id, metadata={"topic": "y2"}).to_dict()["metadata"] == {"topic": "y2"}
    assert openai.conversations.delete(made.id).to_dict() == {
        "id": made.id, "object": "conversation.deleted", "deleted": True,
    }  # fmt: skip
    with pytest.raises(sdk.NotFoundError):
        openai.conversations.retrieve(made.id)
    with db.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM conversation_items")).scalar_one() == 0
    deeds = [entry.resource for entry in audit.list_entries(db, tenant) if entry.action == "conversation.deleted"]
    assert deeds == [made.id]


def test_a_page_of_items_says_where_it_ends(api: httpx2.Client) -> None:
    twenty = [{"role": "user", "content": str(number)} for number in range(20)]
    metadata = {f"{number}": "x" * 512 for number in range(16)}
    made = api.post("/v1/conversations", json={"items": twenty, "metadata": metadata}).raise_for_status().json()
    assert made == {"id": made["id"], "object": "conversation", "created_at": made["created_at"], "metadata": metadata}
    path = f"/v1/conversations/{made['id']}/items"
    assert api.post(path, json={"items": twenty}).json()["has_more"] is False
    whole = api.get(path, params={"limit": 100, "order": "asc"}).json()["data"]
    assert [one["content"][0]["text"] for one in whole] == [one["content"] for one in twenty * 2]
    ids = [one["id"] for one in reversed(whole)]
    for asked, own, has_more in (
        ({}, ids[:20], True),
        ({"limit": 39}, ids[:39], True),
        ({"limit": 40}, ids, False),
        ({"after": ids[20]}, ids[21:], False),
        ({"limit": 2, "order": "asc", "after": ids[2]}, ids[1::-1], False),
    ):
        page = api.get(path, params=asked).json()
        assert [one["id"] for one in page.pop("data")] == own
        assert page == {"object": "list", "first_id": own[0], "last_id": own[-1], "has_more": has_more}
    assert api.get(path, params={"limit": 101}).status_code == 400
    assert api.post(f"/v1/conversations/{made['id']}", json={"metadata": None}).json()["metadata"] == {}


def test_an_answer_is_in_the_conversation_for_every_call_that_reads_it(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker
) -> None:
    talk = openai.conversations.create().id
    path = f"/v1/conversations/{talk}/items"
    answers = [ask(openai, worker, talk, "one").output[0].id]
    assert api.get(f"{path}/{answers[0]}").json()["content"][0]["text"] == "<one>"
    answers.append(ask(openai, worker, talk, "two").output[0].id)
    assert api.delete(f"{path}/{answers[1]}").json()["id"] == talk
    ask(openai, worker, talk, "three")
    assert api.post(path, json={"items": [HELLO]}).json()["data"][0]["content"][0]["text"] == "xyzzy"
    assert texts(openai, talk) == ["one", "<one>", "two", "three", "<one <one> two three>", "xyzzy"]


def test_responses_continue_it_and_add_what_is_new(openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker) -> None:
    talk = openai.conversations.create(items=[HELLO]).id
    first = ask(openai, worker, talk, "one", instructions="Be brief.")
    assert first.output_text == "<Be brief. xyzzy one>"
    assert first.conversation.id == talk
    assert texts(openai, talk) == ["xyzzy", "one", first.output_text], "instructions are not a part of it"
    second = ask(openai, worker, talk, "two", stream=True)
    assert second.output_text == f"<xyzzy one {first.output_text} two>"
    third = begin(api, talk, "three")
    before = ["xyzzy", "one", first.output_text, "two", second.output_text]
    assert texts(openai, talk) == before, "nothing of a response that runs"
    attempt = worker.claim(job_id_of(third))
    worker.say(attempt, "ans")
    worker.hand_back(attempt)
    attempt = worker.go_on(attempt, 1)
    worker.say(attempt, "wer")
    worker.succeed(attempt)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: texts(openai, talk), range(4))]
    assert found == [[*before, "three", "answer"]] * 4, "once, although a worker was lost and four ask at once"
    assert [item["content"][0]["text"] for item in api.get(f"/v1/responses/{third}/input_items").json()["data"]] == [
        "three"
    ]


def test_responses_at_the_same_time_are_added_in_the_order_of_their_ends(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker
) -> None:
    talk = openai.conversations.create().id
    slow, quick, failing, late = (begin(api, talk, said) for said in ("slow", "quick", "failing", "late"))
    for response_id, answer in ((quick, "Q"), (slow, "S")):
        attempt = worker.claim(job_id_of(response_id))
        given = attempt.claim.payload["input"]["messages"]
        assert len(given) == 1, "neither has seen the other"
        worker.say(attempt, answer)
        worker.succeed(attempt)
    worker.fail(worker.claim(job_id_of(failing)), "out_of_memory", "too large")
    api.post(f"/v1/responses/{late}/cancel").raise_for_status()
    assert texts(openai, talk) == ["quick", "Q", "slow", "S"]


def test_a_request_that_is_sent_again_finds_its_response(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker
) -> None:
    talk = openai.conversations.create().id
    headers = {"Idempotency-Key": "k"}
    first = ask(openai, worker, talk, "one", extra_headers=headers)
    assert texts(openai, talk) == ["one", "<one>"]
    assert ask(openai, worker, talk, "one", extra_headers=headers).id == first.id
    with pytest.raises(sdk.APIStatusError):
        ask(openai, worker, talk, "two", extra_headers=headers)
    assert texts(openai, talk) == ["one", "<one>"]
    reference = {"type": "item_reference", "id": first.output[0].id}
    asked = {"model": "tiny", "conversation": talk, "input": [reference, {"role": "user", "content": "two"}]}
    with worker.serve(lambda payload: [str(len(payload["input"]["messages"]))]):
        assert api.post("/v1/responses", json=asked).json()["output"][0]["content"][0]["text"] == "3"
    assert texts(openai, talk) == ["one", "<one>", "two", "3"], "an item that it has is not added again"


def test_what_is_deleted_is_gone_from_the_conversation_and_what_expires_is_not(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    talk = openai.conversations.create(items=[HELLO]).id
    read, unread, expired = (ask(openai, worker, talk, said, stream=True).id for said in ("one", "two", "three"))
    everything = texts(openai, talk)
    assert everything[1::2] == ["one", "two", "three"]
    api.delete(f"/v1/responses/{read}").raise_for_status()
    assert texts(openai, talk) == [everything[0], *everything[3:]]
    api.delete(f"/v1/jobs/{job_id_of(unread)}").raise_for_status()
    (hello, three, answer) = texts(openai, talk)
    assert (hello, three) == ("xyzzy", "three")
    pending = begin(api, talk, "four")
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET completed_at = now() - interval '1 day' WHERE state = 'succeeded'"))
        connection.execute(text("UPDATE conversations SET used_at = now() - interval '1 hour'"))
    kept = Retention(inputs_s=86_000, outputs_s=1800)
    assert sweep(db, tenant, kept, 100).counts["num_conversations"] == 0, "a response will add to it"
    assert api.get(f"/v1/responses/{expired}").status_code == 410
    assert texts(openai, talk) == [hello, three, answer], "copies outlive their response"
    api.delete(f"/v1/responses/{pending}").raise_for_status()
    with db.begin() as connection:
        connection.execute(text("UPDATE jobs SET completed_at = now() - interval '1 day'"))
        connection.execute(text("UPDATE conversations SET used_at = now() - interval '1 hour'"))
    assert sweep(db, tenant, kept, 100).counts["num_conversations"] == 1
    assert api.get(f"/v1/conversations/{talk}").status_code == 404


def test_a_conversation_is_bounded(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_ITEMS", 3)
    talk = openai.conversations.create(items=[HELLO]).id
    assert api.post(f"/v1/conversations/{talk}/items", json={"items": [HELLO] * 3}).status_code == 400
    ask(openai, worker, talk, "one")
    for url, body, param in (
        (f"/v1/conversations/{talk}/items", {"items": [HELLO]}, "items"),
        ("/v1/responses", {"model": "tiny", "input": "x", "conversation": talk}, "conversation"),
    ):
        refused = api.post(url, json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (400, "conversation_too_long")
        assert error_of(refused)["param"] == param
    assert len(texts(openai, talk)) == 3


def test_the_policy_for_every_model_reads_items_and_metadata(
    api: httpx2.Client, make_client: MakeClient, other_key: str
) -> None:
    rule = {"id": "mail", "action": "redact", "stage": "input", "kinds": ["email"]}
    assert api.put("/v1/policies", json={"document": {"version": 1, "rules": [rule]}}).is_success
    mail = "ann@example.com"
    written, metadata = [{"role": "user", "content": f"to {mail}"}], {"who": mail, "topic": "mills"}
    made = api.post("/v1/conversations", json={"items": [HELLO], "metadata": metadata}).raise_for_status().json()
    path = f"/v1/conversations/{made['id']}"
    changed = api.post(path, json={"metadata": metadata}).json()
    for shown in (made, api.get(path).json(), changed):
        assert (shown["metadata"].keys(), shown["metadata"]["topic"]) == (metadata.keys(), "mills")
        assert "ann@" not in shown["metadata"]["who"]
    for url in ("/v1/conversations", f"{path}/items"):
        refused = api.post(url, json={"items": written})
        assert (refused.status_code, error_of(refused)["code"], error_of(refused)["param"]) == (
            400,
            "policy_blocked_input",
            "items",
        )
        assert "rule mail" in error_of(refused)["message"]
    assert len(api.get(f"{path}/items").json()["data"]) == 1
    free = make_client(other_key).post("/v1/conversations", json={"items": written, "metadata": metadata})
    assert free.raise_for_status().json()["metadata"] == metadata


def test_another_tenants_conversation_is_not_there(
    openai: OpenAI, api: httpx2.Client, make_client: MakeClient, other_key: str
) -> None:
    talk = openai.conversations.create(items=[HELLO])
    item = openai.conversations.items.list(talk.id).data[0].id
    stranger, path = make_client(other_key), f"/v1/conversations/{talk.id}"
    calls = [
        stranger.get(path),
        stranger.post(path, json={"metadata": {}}),
        stranger.delete(path),
        stranger.get(f"{path}/items"),
        stranger.post(f"{path}/items", json={"items": [HELLO]}),
        stranger.get(f"{path}/items/{item}"),
        stranger.delete(f"{path}/items/{item}"),
        stranger.post("/v1/responses", json={"model": "tiny", "input": "x", "conversation": talk.id}),
    ]
    assert [(one.status_code, error_of(one)["code"]) for one in calls] == [(404, "not_found")] * len(calls)
    assert texts(openai, talk.id) == ["xyzzy"]
    assert api.get(f"{path}/items/{item}").json()["id"] == item


def test_malformed_requests_are_refused_in_one_shape(
    openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker
) -> None:
    talk = openai.conversations.create().id
    path, image = f"/v1/conversations/{talk}", {"type": "input_image"}
    items: list[Any] = [
        "x", {}, [1], [None], [{}], [HELLO] * 21, [{"type": "message"}], [{"role": "nobody", "content": "x"}],
        [{"type": "web_search_call"}], [{"role": "user", "content": [image]}], [{"type": "function_call"}],
        [{"role": "user", "content": "\0"}], [{"type": "item_reference", "id": "msg_1"}],
    ]  # fmt: skip
    bad = [api.post(url, json={"items": one}) for one in items for url in ("/v1/conversations", f"{path}/items")]
    bad += [api.post(f"{path}/items", json=one) for one in ({}, {"items": None}, {"items": []}, [], None)]
    for metadata in ("x", [], {"a": []}, {"a": "x" * 513}, {str(n): "" for n in range(17)}, {"": "x"}, {"a": "\0"}):
        bad += [api.post(url, json={"metadata": metadata}) for url in ("/v1/conversations", path)]
    bad += [api.post(path, json={})]
    bad += [api.get(f"{path}/items", params=one) for one in ({"limit": 0}, {"order": "x"}, {"after": "msg_1"})]
    asked = {"model": "tiny", "input": "x", "conversation": talk}
    bad += [api.post("/v1/responses", json=asked | one) for one in ({"conversation": 1}, {"conversation": {}},
            {"store": False}, {"previous_response_id": "resp_1"}, {"input": None})]  # fmt: skip
    within = ask(openai, worker, talk, "one").id
    bad += [api.post("/v1/responses", json={"model": "tiny", "input": "x", "previous_response_id": within})]
    for response in bad:
        assert response.status_code == 400, (str(response.request.url), response.request.content, response.text)
        assert error_of(response)["code"] in ("invalid_value", "unsupported_parameter"), response.text
    for id_ in ("x", "conv_", "%00", "conv_" + "9" * 500):
        url = f"/v1/conversations/{id_}"
        for response in (api.get(url), api.delete(url), api.get(f"{url}/items"), api.get(f"{path}/items/{id_}")):
            assert response.status_code in (400, 404), id_
    missing = api.post("/v1/responses", json=asked | {"conversation": "conv_none"})
    assert (missing.status_code, error_of(missing)["param"]) == (404, "conversation")
