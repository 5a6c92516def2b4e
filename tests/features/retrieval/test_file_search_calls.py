"""A model that calls ``file_search``: what is searched, what the model is told, and what the answer cites."""

from typing import Any

import httpx2
import pytest

from headrace.features.flows.running.step_inputs import FilledSteps, StepInputs
from headrace.features.policy import policies
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim, Finish, finish
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.workers.runs.in_flight import Attempt
from tests.cases import some_of
from tests.features.retrieval.test_retrieval_jobs import MILL, Ends, claimed, new_store
from tests.producer_api.submission.test_tool_jobs import (
    QUESTION,
    caller_model,
    calls,
    messages_of,
    run,
    weather,
)

__all__ = ["caller_model", "weather"]  # fixtures

pytestmark = pytest.mark.usefixtures("encoder")


def submitted(api: httpx2.Client, store_id: str, **changes: Any) -> str:
    search = {"vector_store_ids": [store_id], "max_num_results": 2} | changes
    asked = {"names": ["file_search"], "file_search": search, "require_approval": "always"}
    sent = api.post("/v1/jobs", json={"model": "wide", "input": {"messages": [QUESTION]}, "server_tools": asked})
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


def search(db: Database, api: httpx2.Client, job_id: str, name: str) -> Claim:
    """End a step that searches, as the worker of its model does."""
    held = claimed(db, api, job_id, name)
    end = FilledSteps(StepInputs(db), most_steps=16).compute(Attempt(held, 0.0, None, 0.0), Ends(db, "").compute)
    assert isinstance(end, Finish)
    assert finish(db, [end])
    return held


def test_a_model_searches_and_its_answer_cites(db: Database, api: httpx2.Client, tenant: str) -> None:
    job_id = submitted(api, new_store(db, tenant, MILL, "Ask ann@example.com.", "Rain."))
    run(db, api, job_id, "answer", calls(("file_search", '{"query": "mill"}'), ("file_search", '{"query": "rain"}')))
    held = search(db, api, job_id, "answer:1")
    assert (held.task, held.model, held.payload["input"]) == ("embed", "org/vectors", {"texts": ["mill"]})
    search(db, api, job_id, "answer:2")
    held = run(db, api, job_id, "answer:3", {"text": "Water [1].", "finish_reason": "stop"})
    first, second = (one["content"].splitlines() for one in messages_of(held)[-2:])
    told = '{"number": 1, "filename": "mill.md", "text": "The headrace leads water to the wheel of the mill."}'
    assert (first[0], len(first), second[0][:12]) == (told, 2, '{"number": 3')
    output = api.get(f"/v1/jobs/{job_id}").json()["output"]
    assert [(one["index"], one["filename"]) for one in output["annotations"]] == [
        (number, "mill.md") for number in (1, 2, 3, 4)
    ]


def test_passages_go_through_the_policy_and_are_bounded(db: Database, api: httpx2.Client, tenant: str) -> None:
    rule = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "t")
    job_id = submitted(api, new_store(db, tenant, "Ask ann@example.com.", MILL * 9), max_context_tokens=50)
    run(db, api, job_id, "answer", calls(("file_search", '{"query": "mill"}')))
    search(db, api, job_id, "answer:1")
    held = run(db, api, job_id, "answer:2", {"text": "Ask her.", "finish_reason": "stop"})
    content = messages_of(held)[-1]["content"]
    assert ("ann@" in content, "Ask" in content, "headrace" in content) == (False, True, False)
    (citation,) = api.get(f"/v1/jobs/{job_id}").json()["output"]["annotations"]
    assert citation["index"] == 1


@some_of(2, "arguments", ["{", "{}", '{"query": " "}', '{"query": "a", "limit": 3}', '{"query": 1}'])
def test_arguments_that_do_not_fit_are_a_call_that_says_so(
    db: Database, api: httpx2.Client, tenant: str, arguments: str
) -> None:
    job_id = submitted(api, new_store(db, tenant, MILL))
    run(db, api, job_id, "answer", calls(("file_search", arguments)))
    held = claimed(db, api, job_id, "answer:1")
    assert (held.task, held.payload["input"]["arguments"]) == ("call_tool", arguments)


@some_of(
    2,
    ("changes", "param", "status"),
    [
        ({"file_search": None}, "server_tools", 400),
        ({"names": ["calculator"]}, "server_tools", 400),
        ({"file_search": {"vector_store_ids": ["vs_gone"]}}, "server_tools.file_search.vector_store_ids[0]", 404),
        ({"require_approval": {"always": {"tool_names": ["file_search"]}}}, "server_tools.require_approval", 400),
    ],
)
def test_a_search_without_stores_is_refused(
    db: Database, api: httpx2.Client, tenant: str, changes: dict[str, Any], param: str, status: int
) -> None:
    search = {"vector_store_ids": [new_store(db, tenant, MILL)]}
    asked = {"names": ["file_search"], "file_search": search} | changes
    refused = api.post("/v1/jobs", json={"model": "wide", "input": {"messages": [QUESTION]}, "server_tools": asked})
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text
