"""Responses with ``file_search``, asked by the official client: the search, its item and events, and the citations."""

from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI
from sqlalchemy import text

from headrace.features.policy import policies
from headrace.store.db.database import Database
from headrace.store.jobs import erasure
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.tenants.api_keys import create_tenant
from tests.cases import some_of
from tests.features.retrieval.test_retrieval_jobs import MILL, QUESTION, claimed, ended, new_store
from tests.producer_api.calling import num_jobs

RESULTS: Any = ["file_search_call.results"]
SEARCH = "file_search_call"
EVENTS = [
    *("created", "in_progress", "output_item.added", f"{SEARCH}.in_progress", f"{SEARCH}.searching"),
    *(f"{SEARCH}.completed", "output_item.done", "output_item.added", "content_part.added", "output_text.delta"),
    *("output_text.annotation.added", "output_text.done", "content_part.done", "output_item.done", "completed"),
]

pytestmark = pytest.mark.usefixtures("encoder")


def tool(*stores: str, **fields: Any) -> Any:
    return [{"type": "file_search", "vector_store_ids": [*stores], **fields}]


def asking(*stores: str, **fields: Any) -> Any:
    return {"model": "tiny", "input": QUESTION, "background": True, "tools": tool(*stores)} | fields


def job_of(response_id: str) -> str:
    return response_id.replace("resp_", "job_")


def answered(db: Database, api: httpx2.Client, response_id: str) -> list[dict[str, Any]]:
    """Run both steps as workers do; return the messages that the model was given."""
    ended(db, claimed(db, api, job_of(response_id), "answer:search"))
    messages: list[dict[str, Any]] = ended(db, claimed(db, api, job_of(response_id), "answer")).payload["input"][
        "messages"
    ]
    return messages


def kinds(events: list[Any]) -> list[str]:
    """The events' types, each row of equal ones once."""
    named = [event.type.removeprefix("response.") for event in events]
    return [kind for kind, before in zip(named, [None, *named], strict=False) if kind != before]


def test_a_response_searches_first_and_cites(db: Database, api: httpx2.Client, openai: OpenAI, tenant: str) -> None:
    own = new_store(db, tenant, MILL)
    given: Any = {"instructions": "Be brief.", "tool_choice": {"type": "file_search"}}
    made = openai.responses.create(**asking(own, **given))
    assert made.output == []
    system, user = answered(db, api, made.id)
    assert system["content"] == "Be brief."
    assert MILL in user["content"]
    assert user["content"].endswith(f"\n\n{QUESTION}")
    plain: Any = openai.responses.retrieve(made.id)
    search, said = plain.output
    assert (search.type, search.status, search.queries, search.results) == (
        "file_search_call",
        "completed",
        [QUESTION],
        None,
    )
    assert (plain.output_text, plain.status) == ("The headrace.", "completed")
    (cited,) = said.content[0].annotations
    assert (cited.type, cited.index, cited.filename, cited.place["page"]) == ("file_citation", 1, "mill.md", 2)
    shown: Any = openai.responses.retrieve(made.id, include=RESULTS).output[0]
    assert [(one.text, one.file_id) for one in shown.results] == [(MILL, cited.file_id)]
    assert shown.model_copy(update={"results": None}) == search
    assert plain.tools[0].vector_store_ids == [own]


def test_a_stream_has_the_events_of_the_search(db: Database, api: httpx2.Client, openai: OpenAI, tenant: str) -> None:
    """Every number leads to the same events, of a running response and of one that has ended."""
    own = new_store(db, tenant, MILL)
    with openai.responses.create(**asking(own, background=False, stream=True, include=RESULTS)) as stream:
        live = [next(iter(stream))]
        answered(db, api, live[0].response.id)
        live += list(stream)
    assert kinds(live) == EVENTS
    assert [event.sequence_number for event in live] == list(range(len(live)))
    response_id = live[0].response.id
    for number in range(len(live) - 1):
        again = list(openai.responses.retrieve(response_id, stream=True, starting_after=number, include=RESULTS))
        assert again == live[number + 1 :]
    by_kind = {event.type.removeprefix("response."): event for event in live}
    done = [event.item for event in live if event.type == "response.output_item.done"]
    assert done == by_kind["completed"].response.output
    assert done[0].results[0].text == MILL
    (cited,) = done[1].content[0].annotations
    assert by_kind["output_text.annotation.added"].annotation.to_dict() == cited.to_dict()


def test_a_response_goes_on_from_a_search(db: Database, api: httpx2.Client, openai: OpenAI, tenant: str) -> None:
    """The search is an item of the chain, and the model is not given its passages again."""
    own = new_store(db, tenant, MILL)
    first = openai.responses.create(**asking(own))
    answered(db, api, first.id)
    whole = openai.responses.retrieve(first.id, include=RESULTS)
    second = openai.responses.create(**asking(own, input="And back?", previous_response_id=first.id))
    sent_back: Any = [{"role": "user", "content": QUESTION}, *(one.to_dict() for one in whole.output)]
    third = openai.responses.create(**asking(own, input=[*sent_back, {"role": "user", "content": "And back?"}]))
    items = list(openai.responses.input_items.list(second.id, order="asc"))
    assert [one.type for one in items] == ["message", "file_search_call", "message", "message"]
    assert [one.id for one in items[1:3]] == [one.id for one in whole.output]
    for made in (second, third):
        *before, last = answered(db, api, made.id)
        assert [(one["role"], one["content"]) for one in before] == [("user", QUESTION), ("assistant", "The headrace.")]
        assert MILL in last["content"]
        search: Any = openai.responses.retrieve(made.id).output[0]
        assert search.queries == ["And back?"]


def test_a_conversation_keeps_the_search_and_a_request_sent_again_is_known(
    db: Database, api: httpx2.Client, openai: OpenAI, tenant: str
) -> None:
    own = new_store(db, tenant, MILL)
    talk = openai.conversations.create().id
    key = {"Idempotency-Key": "once"}
    made = openai.responses.create(**asking(own, conversation=talk), extra_headers=key)
    answered(db, api, made.id)
    items = list(openai.conversations.items.list(talk, order="asc"))
    assert [one.type for one in items] == ["message", "file_search_call", "message"]
    assert openai.responses.create(**asking(own, conversation=talk), extra_headers=key).id == made.id
    with pytest.raises(sdk.UnprocessableEntityError):
        openai.responses.create(**asking(own, conversation=talk, input="Another"), extra_headers=key)


def test_cancel_and_delete_concern_both_steps(db: Database, api: httpx2.Client, openai: OpenAI, tenant: str) -> None:
    own = new_store(db, tenant, MILL)
    waiting, done = (openai.responses.create(**asking(own)) for _ in range(2))
    cancelled = openai.responses.cancel(waiting.id)
    assert (cancelled.status, cancelled.output) == ("cancelled", [])
    answered(db, api, done.id)
    openai.responses.delete(done.id)
    with pytest.raises(sdk.NotFoundError):
        openai.responses.retrieve(done.id)
    with db.begin() as connection:
        erasure.erase(connection, [job_of(done.id)])
        kept = connection.execute(
            text("SELECT count(*) FROM jobs WHERE tenant_id = :tenant AND output IS NOT NULL"), {"tenant": tenant}
        ).scalar_one()
    assert kept == 0


def test_a_policy_sees_the_question_and_what_is_shown_of_it(
    db: Database, api: httpx2.Client, openai: OpenAI, tenant: str
) -> None:
    own = new_store(db, tenant, MILL)
    rule = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "tests")
    made = openai.responses.create(**asking(own, input="Does ann@example.com know the mill?"))
    held = answered(db, api, made.id)
    assert held[-1]["content"].endswith("Does <EMAIL_1> know the mill?")
    shown: Any = openai.responses.retrieve(made.id)
    assert shown.output[0].queries == ["Does <EMAIL_1> know the mill?"]
    (item,) = openai.responses.input_items.list(made.id).data
    assert "ann@example.com" not in item.to_json()


@some_of(
    3,
    ("changes", "param"),
    [
        ({"tools": tool()}, "tools[0].vector_store_ids"),
        ({"tools": tool("STORE", "OTHER")}, "tools[0].vector_store_ids[1]"),
        ({"tools": tool("STORE", filters={"type": "like"})}, "tools[0].filters.type"),
        ({"tools": tool("STORE", max_num_results=51)}, "tools[0].max_num_results"),
        ({"tools": tool("STORE", ranking_options={"ranker": "judge"})}, "tools[0].ranking_options.ranker"),
        ({"tools": tool("STORE", unknown=1)}, "tools[0].unknown"),
        ({"tools": [*tool("STORE"), *tool("STORE")]}, "tools[1]"),
        ({"tools": [{"type": "function", "name": "f"}, *tool("STORE")]}, "tools[0]"),
        ({"input": [{"role": "assistant", "content": "Hm."}]}, "input"),
        ({"tools": [], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_is_stored(
    db: Database, api: httpx2.Client, tenant: str, changes: dict[str, Any], param: str
) -> None:
    """The store of another tenant is not found."""
    names = {"STORE": new_store(db, tenant, MILL), "OTHER": new_store(db, create_tenant(db, "globex"), MILL)}
    body = asking("STORE") | changes
    body["tools"] = [
        one | {"vector_store_ids": [names[name] for name in one.get("vector_store_ids", ())]} for one in body["tools"]
    ]
    refused = api.post("/v1/responses", json=body)
    wanted = 404 if param.endswith("[1]") and "." in param else 400
    assert (refused.status_code, refused.json()["error"]["param"]) == (wanted, param), refused.text
    assert num_jobs(db) == 0


def test_without_a_search(db: Database, api: httpx2.Client, openai: OpenAI, tenant: str) -> None:
    """With the choice ``none`` it is an ordinary job; a search in the web beside files is left out."""
    own = new_store(db, tenant, MILL)
    plain = openai.responses.create(**asking(own, tool_choice="none"))
    assert api.get(f"/v1/jobs/{job_of(plain.id)}").json().get("steps") is None
    both = openai.responses.create(**asking(own, tools=[*tool(own), {"type": "web_search"}]))
    assert len(api.get(f"/v1/jobs/{job_of(both.id)}").json()["steps"]) == 2
