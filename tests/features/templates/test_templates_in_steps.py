"""Prompt templates in jobs whose prompt is made by a worker: with passages, or with outputs of other steps."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from tests.features.retrieval.test_retrieval_jobs import MILL, QUESTION, claimed, ended, new_store
from tests.features.templates.test_default_templates import register

ASK: dict[str, Any] = {
    "name": "ask",
    "instructions": "Be brief.",
    "messages": [{"role": "user", "content": "What leads water to the {{ what }}?"}],
    "variables": ["what"],
}
FILLED = {"id": "ask", "variables": {"what": "mill"}}
SMALL = {"sampling": {"max_tokens": 16}}

pytestmark = pytest.mark.usefixtures("encoder", "model")


def answered(db: Database, api: httpx2.Client, job_id: str) -> tuple[list[str], dict[str, Any]]:
    """Run both steps; return the texts of the messages that the model was given, and the job."""
    searched = ended(db, claimed(db, api, job_id, "answer:search"))
    assert searched.payload["input"]["texts"] == [QUESTION]
    held = ended(db, claimed(db, api, job_id, "answer"))
    return [one["content"] for one in held.payload["input"]["messages"]], api.get(f"/v1/jobs/{job_id}").json()


@pytest.mark.parametrize("face", ["jobs", "chats", "responses"])
def test_the_last_message_of_a_template_is_the_question(
    db: Database, api: httpx2.Client, openai: OpenAI, tenant: str, face: str
) -> None:
    assert api.post("/v1/prompts", json=ASK).status_code == 201
    wanted = {"vector_store_ids": [new_store(db, tenant, MILL)]}
    if face == "jobs":
        body = {"model": "tiny", "input": {"template": FILLED}, "retrieval": wanted, **SMALL}
        job_id = api.post("/v1/jobs", json=body).json()["id"]
    elif face == "chats":
        chat = {"model": "tiny", "prompt": FILLED, "retrieval": wanted, "max_tokens": 16, "stream": True}
        with api.stream("POST", "/v1/chat/completions", json=chat | {"job": {"on_disconnect": "continue"}}) as stream:
            job_id = stream.headers["X-Job-Id"]
    else:
        given: Any = {"prompt": FILLED, "tools": [{"type": "file_search", **wanted}]}
        made = openai.responses.create(model="tiny", background=True, max_output_tokens=16, **given)
        job_id = made.id.replace("resp_", "job_")
    (system, user), job = answered(db, api, job_id)
    assert system == "Be brief."
    assert MILL in user
    assert user.endswith(f"\n\n{QUESTION}")
    assert (job["template"]["name"], job["template"]["version"]) == ("ask", 1)
    assert job["output"]["annotations"]


def test_a_raw_text_has_no_place_for_passages(db: Database, api: httpx2.Client, tenant: str) -> None:
    api.post("/v1/prompts", json={"name": "raw", "text": "Once"})
    body = {"model": "tiny", "input": {"template": {"id": "raw"}}, **SMALL}
    refused = api.post("/v1/jobs", json=body | {"retrieval": {"vector_store_ids": [new_store(db, tenant, MILL)]}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input.messages")


def test_the_messages_of_a_template_stay_when_turns_are_cut(db: Database, api: httpx2.Client, tenant: str) -> None:
    turns = [{"role": "user", "content": "Know the rule."}, {"role": "assistant", "content": "I know it."}]
    api.post("/v1/prompts", json={"name": "rule", "messages": turns})
    old = [{"role": "user", "content": "corn " * 80}, {"role": "assistant", "content": "flour"}]
    body = {
        "model": "tiny",
        "input": {"template": {"id": "rule"}, "messages": [*old, {"role": "user", "content": QUESTION}]},
        "retrieval": {"vector_store_ids": [new_store(db, tenant, MILL)]},
        "truncation": "oldest_turns",
        **SMALL,
    }
    given, _ = answered(db, api, api.post("/v1/jobs", json=body).json()["id"])
    assert given[:2] == [turn["content"] for turn in turns]
    assert given[2].endswith(QUESTION), "the old turns are cut"


def test_the_default_template_of_a_version_comes_first_in_steps_too(
    db: Database, api: httpx2.Client, tenant: str
) -> None:
    """A second step, which waits for the output of the first, has it too, once."""
    api.post("/v1/prompts", json={"name": "brief", "instructions": "Be brief."})
    assert register(api, "tiny", files_of="tiny@1", prompt={"id": "brief"}).json()["id"] == "tiny@2"
    hi = {"model": "tiny@2", "input": {"messages": [{"role": "user", "content": QUESTION}]}, **SMALL}
    found = {"retrieval": {"vector_store_ids": [new_store(db, tenant, MILL)]}}
    (system, user), job = answered(db, api, api.post("/v1/jobs", json=hi | found).json()["id"])
    assert (system, MILL in user, job["template"]["name"]) == ("Be brief.", True, "brief")
    referring = {"messages": [{"role": "user", "content": {"$from": "first.output.text"}}]}
    steps = [hi | {"name": "first"}, hi | {"name": "answer", "needs": ["first"], "input": referring}]
    job_id = api.post("/v1/jobs", json={"steps": steps}).json()["id"]
    ended(db, claimed(db, api, job_id, "first"))
    held = ended(db, claimed(db, api, job_id, "answer"))
    assert [one["content"] for one in held.payload["input"]["messages"]] == ["Be brief.", "The headrace."]
    assert [one["input"] for one in jobs.get(db, tenant, job_id).payload["steps"]] == [hi["input"], referring]
