"""Approvals over HTTP: which calls wait, what is shown of the wait, what an answer does, and what a model is told."""

from typing import Any

import httpx2
import pytest

from headrace.features.flows.model import load_tool_model
from headrace.features.flows.store.approvals import verdict_of
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool, McpServer
from headrace.features.flows.tools.tool_results import CallResult, ToolOrder, refusal_of
from headrace.store.db.database import Database
from headrace.store.jobs.claims import claim
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import create_key, create_tenant
from tests.cases import some_of
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient
from tests.producer_api.submission.test_tool_jobs import (
    QUESTION,
    URL,
    caller_model,
    calls,
    messages_of,
    run,
    submitted,
    weather,
)
from tests.refusals import Naming

__all__ = ["caller_model", "weather"]  # fixtures

ROME = '{"city": "Rome"}'


def wait(db: Database, api: httpx2.Client, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Submit a job whose model makes a call that waits; return the job's id and the approval."""
    job_id = submitted(api, **{"require_approval": "always", **changes})
    run(db, api, job_id, "answer", calls(("weather", ROME)))
    (asked,) = api.get(f"/v1/jobs/{job_id}").json()["waiting_for"]
    return job_id, dict(asked)


@pytest.mark.parametrize("approve", [True, False])
def test_a_job_waits_until_its_call_is_answered(db: Database, api: httpx2.Client, tenant: str, approve: bool) -> None:
    job_id, asked = wait(db, api)
    job = api.get(f"/v1/jobs/{job_id}").json()
    call = job["steps"][1]
    assert (job["status"], call["status"], call["needs"]) == ("running", "queued", ["answer", asked["id"]])
    assert (asked["tool"], asked["arguments"], asked["status"], asked["step"]) == (
        "weather",
        ROME,
        "pending",
        "answer:1",
    )
    assert asked["expires_at"] - asked["created_at"] == 3600
    assert claim(db, "worker", "tools@1", [call["job_id"]], 60.0) == {}
    assert api.get("/v1/approvals", params={"status": "pending"}).json()["data"] == [asked]
    path, body = f"/v1/jobs/{job_id}/approvals/{asked['id']}", {"approve": approve, "reason": "no travel"}
    made = api.post(path, json=body)
    assert (made.status_code, made.json()["status"]) == (200, "approved" if approve else "refused"), made.text
    assert made.json()["reason"] == "no travel"
    assert made.json()["decided_by"].startswith("key_")
    assert made.json()["decided_at"] >= asked["created_at"]
    assert api.post(path, json={"approve": approve}).json() == made.json()
    other = api.post(path, json={"approve": not approve})
    assert (other.status_code, error_of(other)["code"]) == (409, "approval_decided")
    told = refusal_of(verdict_of(db, tenant, call["job_id"]))
    assert told == (None if approve else Naming("no travel"))
    run(db, api, job_id, "answer:1", {"text": told or "22", "is_error": not approve})
    held = run(db, api, job_id, "answer:2", {"text": "Done.", "finish_reason": "stop"})
    assert messages_of(held)[-1]["content"] == (told or "22")
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["waiting_for"]) == ("succeeded", None)
    kinds = [event["kind"] for event in api.get(f"/v1/jobs/{job_id}/timeline").json()["events"]]
    assert [kind for kind in kinds if kind.startswith("approval")] == ["approval_requested", "approval_decided"]
    stream = api.get(f"/v1/jobs/{job_id}/events").text
    assert f'"approval_id":"{asked["id"]}","tool":"weather","state":"{made.json()["status"]}"' in stream


def test_approvals_are_listed_by_page_in_both_orders(db: Database, api: httpx2.Client) -> None:
    oldest_first = [wait(db, api)[1] for _ in range(3)]
    path = "/v1/approvals"
    for order, expected in (("desc", oldest_first[::-1]), ("asc", oldest_first)):
        first = api.get(path, params={"limit": 2, "order": order}).json()
        assert (first["data"], first["has_more"]) == (expected[:2], True)
        assert (first["first_id"], first["last_id"]) == (expected[0]["id"], expected[1]["id"])
        rest = api.get(path, params={"limit": 2, "order": order, "after": first["last_id"]}).json()
        assert (rest["data"], rest["has_more"]) == (expected[2:], False)
    whole = api.get(path, params={"limit": 3}).json()
    assert (whole["data"], whole["has_more"]) == (oldest_first[::-1], False)
    assert whole == api.get(path).json()
    assert oldest_first[0] == {
        "id": oldest_first[0]["id"],
        "object": "approval",
        "status": "pending",
        "job_id": oldest_first[0]["job_id"],
        "step": "answer:1",
        "tool": "weather",
        "arguments": ROME,
        "created_at": oldest_first[0]["created_at"],
        "expires_at": oldest_first[0]["created_at"] + 3600,
        "decided_at": None,
        "decided_by": None,
        "reason": None,
    }
    for bad in ("limit=0", "limit=101", "order=up", "status=gone"):
        refused = api.get(f"{path}?{bad}")
        assert (refused.status_code, error_of(refused)["param"]) == (400, bad.partition("=")[0])


def test_an_approval_is_its_tenants_and_needs_the_scope(
    db: Database, api: httpx2.Client, tenant: str, make_client: MakeClient
) -> None:
    job_id, asked = wait(db, api)
    path, body = f"/v1/jobs/{job_id}/approvals/{asked['id']}", {"approve": True}
    stranger = make_client(create_key(db, create_tenant(db, "hooli"), "s", ["jobs:read", "jobs:write"], actor="t"))
    reader = make_client(create_key(db, tenant, "r", ["jobs:read"], actor="t"))
    assert stranger.post(path, json=body).status_code == 404
    assert stranger.get("/v1/approvals").json()["data"] == []
    assert reader.post(path, json=body).status_code == 403
    assert [one["id"] for one in reader.get("/v1/approvals", params={"job_id": job_id}).json()["data"]] == [asked["id"]]
    assert api.post(path.replace(job_id, submitted(api)), json=body).status_code == 404
    for wrong in ({}, {"approve": "yes"}, {"approve": True, "reason": "x" * 1001}, {"approve": True, "more": 1}):
        assert api.post(path, json=wrong).status_code == 400
    assert api.get("/v1/approvals", params={"status": "approved"}).json()["data"] == []


def test_nobody_is_asked_for_a_call_whose_arguments_do_not_fit(
    db: Database, api: httpx2.Client, tenant: str, settings: Settings, caller_model: ModelVersion
) -> None:
    """The model gets the fault as the result, as without an approval, whatever the schema is by then."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    strict = HttpTool(url=URL, parameters=schema)
    stored = tools.create(db, tenant, "strict", strict, actor="t")
    job_id = submitted(api, ["weather", "strict"], require_approval="always")
    wrong = ['{"city": ', "[]", '{"city": 5}', ""]
    run(db, api, job_id, "answer", calls(("weather", ""), *(("strict", one) for one in wrong)))
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert [(one["tool"], one["arguments"]) for one in job["waiting_for"]] == [("weather", "")]
    tools.replace(db, tenant, stored.id, HttpTool(url=URL), actor="t")
    model = load_tool_model(caller_model, settings, read_nothing)
    for number, arguments in enumerate(wrong, 2):
        held = run(db, api, job_id, f"answer:{number}", {"text": "seen below", "is_error": True})
        found = model.encoder.call(model.read(held.payload).options)
        assert found == model.encoder.call(ToolOrder("strict", arguments, tool=strict))
        assert found.text.startswith("Error: the arguments ")
        assert (found.tries, found.result) == (0, CallResult.NOT_CALLED)


def read_nothing(*_of: str) -> bytes:
    raise AssertionError("the task has no files")


NAMED = {"tool_names": ["weather"]}


@some_of(
    3,
    ("stored", "asked", "is_waiting"),
    [
        ("never", "never", False),
        ("always", "never", True),
        ("never", {"always": NAMED}, True),
        ("never", {"never": NAMED}, False),
        ("never", {"never": {"tool_names": ["calculator"]}}, True),
        ("always", {"never": NAMED}, True),
    ],
)
def test_a_call_waits_if_the_tool_or_the_request_says_so(
    db: Database, api: httpx2.Client, tenant: str, stored: str, asked: object, is_waiting: bool
) -> None:
    (mine,) = tools.list_tools(db, tenant)
    definition = HttpTool.model_validate({"url": URL, "require_approval": stored})
    tools.replace(db, tenant, mine.id, definition, actor="t")
    job_id = submitted(api, ["weather", "calculator"], require_approval=asked)
    run(db, api, job_id, "answer", calls(("weather", ROME)))
    waiting = api.get(f"/v1/jobs/{job_id}").json()["waiting_for"]
    assert [one["tool"] for one in waiting or ()] == (["weather"] if is_waiting else [])


def test_tools_of_a_server_wait_by_the_servers_own_names(db: Database, api: httpx2.Client, tenant: str) -> None:
    server = McpServer.model_validate(
        {
            "type": "mcp",
            "url": URL,
            "tools": {name: {"name": f"{name}!", "parameters": {"type": "object"}} for name in ("find", "close")},
            "require_approval": {"always": {"tool_names": ["close!"]}},
        }
    )
    tools.create(db, tenant, "tracker", server, actor="t")
    for asked, waiting in (
        ("never", ["tracker__close"]),
        ({"always": {"tool_names": ["tracker"]}}, ["tracker__find", "tracker__close"]),
    ):
        job_id = submitted(api, ["tracker"], require_approval=asked)
        run(db, api, job_id, "answer", calls(("tracker__find", "{}"), ("tracker__close", "{}")))
        found = api.get(f"/v1/jobs/{job_id}").json()["waiting_for"]
        assert [one["tool"] for one in found] == waiting


@some_of(
    2,
    "rule",
    [
        "sometimes",
        {},
        {"always": {"tool_names": ["wether"]}},
        {"always": NAMED, "never": NAMED},
        {"always": {"tool_names": []}},
    ],
)
def test_a_rule_that_means_nothing_is_refused(api: httpx2.Client, rule: object) -> None:
    body = {"model": "wide", "input": {"messages": [QUESTION]}}
    refused = api.post("/v1/jobs", json=body | {"server_tools": {"names": ["weather"], "require_approval": rule}})
    assert refused.status_code == 400
    assert error_of(refused)["param"].startswith("server_tools.require_approval")
