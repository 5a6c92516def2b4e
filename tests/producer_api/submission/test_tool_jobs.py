"""Jobs whose model calls server tools: the steps that follow, what the model is told, and the bound of the calls."""

from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from headrace.features.flows.running.step_inputs import FilledSteps, StepInputs
from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool, McpServer
from headrace.features.policy import policies
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim, Finish, finish
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.registry.models import ModelVersion, register_version
from headrace.store.schema.job_states import JobState
from headrace.store.tenants.api_keys import create_tenant
from headrace.workers.runs.in_flight import Attempt
from tests.cases import some_of
from tests.features.retrieval.test_retrieval_jobs import claimed
from tests.producer_api.calling import error_of

QUESTION = {"role": "user", "content": "What is the weather in Rome?"}
URL = "https://tools.example.com/"


@pytest.fixture(autouse=True)
def caller_model(db: Database) -> ModelVersion:
    """The version that makes calls."""
    runner = CALL_TOOL.fake_runner
    return register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )


@pytest.fixture(autouse=True)
def weather(db: Database, tenant: str) -> None:
    """The tool of the tenant, and one of the same name of another; and a model with room for the tools."""
    register(db, "wide", "fake", "auto", actor="t")
    tools.create(db, tenant, "weather", HttpTool(url=URL, description="Ours."), actor="t")
    tools.create(db, create_tenant(db, "globex"), "weather", HttpTool(url=URL, description="Theirs."), actor="t")
    tools.create(db, create_tenant(db, "initech"), "theirs", HttpTool(url=URL), actor="t")


class Says:
    """Ends a step at once with this output."""

    def __init__(self, output: dict[str, Any]) -> None:
        self._output = output

    def compute(self, attempt: Attempt) -> Finish:
        held = attempt.claim
        return Finish(
            held.job_id,
            held.epoch,
            JobState.SUCCEEDED,
            self._output,
            None,
            {"input_tokens": 5, "output_tokens": 3},
            tenant_id=held.tenant_id,
            parent_id=held.parent_id,
            deltas=(self._output["text"],) if held.task == "generate" else (),
        )


def calls(*functions: tuple[str, str]) -> dict[str, Any]:
    made = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": given}}
        for number, (name, given) in enumerate(functions)
    ]
    return {"text": "call", "finish_reason": "tool_calls", "tool_calls": made}


def run(db: Database, api: httpx2.Client, job_id: str, name: str, output: dict[str, Any]) -> Claim:
    """End a step as its worker does; return the claim with the payload that its task was given."""
    held = claimed(db, api, job_id, name)
    end = FilledSteps(StepInputs(db), most_steps=16).compute(Attempt(held, 0.0, None, 0.0), Says(output).compute)
    assert isinstance(end, Finish)
    assert finish(db, [end])
    return held


def submitted(api: httpx2.Client, names: Sequence[str] = ("weather",), **changes: Any) -> str:
    body = {"model": "wide", "input": {"messages": [QUESTION]}, "server_tools": {"names": [*names], **changes}}
    sent = api.post("/v1/jobs", json=body)
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


def messages_of(held: Claim) -> list[dict[str, Any]]:
    return [dict(one) for one in held.payload["input"]["messages"]]


def test_an_answer_with_calls_goes_on_behind_them(db: Database, api: httpx2.Client) -> None:
    job_id = submitted(api, max_tool_calls=3)
    broken = '{"city": '
    held = run(db, api, job_id, "answer", calls(("weather", '{"city": "Rome"}'), ("weather", broken)))
    told = [one["function"] for one in held.payload["input"]["tools"]]
    assert [(one["name"], one["description"]) for one in told] == [("weather", "Ours.")]
    asked = run(db, api, job_id, "answer:1", {"text": "22 degrees", "is_error": False, "tries": 1})
    assert (asked.task, asked.payload["input"]) == ("call_tool", {"tool": "weather", "arguments": '{"city": "Rome"}'})
    run(db, api, job_id, "answer:2", {"text": "Error: not valid", "is_error": True, "tries": 0})
    held = run(db, api, job_id, "answer:3", {"text": "It is warm.", "finish_reason": "stop"})
    first, turn, *results = messages_of(held)
    assert (first["content"], turn["role"], len(results)) == (QUESTION["content"], "assistant", 2)
    assert [one["function"]["arguments"] for one in turn["tool_calls"]] == ['{"city": "Rome"}', "{}"]
    assert [(one["tool_call_id"], one["content"]) for one in results] == [
        ("call_0", "22 degrees"),
        ("call_1", "Error: not valid"),
    ]
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["output"]["text"], job["usage"]["output_tokens"]) == ("succeeded", "It is warm.", 12)
    assert [one["name"] for one in job["steps"]] == ["answer", "answer:1", "answer:2", "answer:3"]


def test_the_last_call_is_followed_by_an_answer_in_words(db: Database, api: httpx2.Client) -> None:
    job_id = submitted(api, max_tool_calls=2, tool_choice="required")
    call = ("weather", "{}")
    held = run(db, api, job_id, "answer", calls(call))
    assert held.payload["input"]["tool_choice"] == "required"
    run(db, api, job_id, "answer:1", {"text": "a", "is_error": False})
    held = run(db, api, job_id, "answer:2", calls(call, call))
    assert held.payload["input"].get("tool_choice") is None
    run(db, api, job_id, "answer:3", {"text": "b", "is_error": False})
    held = run(db, api, job_id, "answer:4", calls(call))
    assert held.payload["input"]["tool_choice"] == "none"
    *_, made, refused = messages_of(held)
    assert (made["content"], refused["content"][:17]) == ("b", "Error: not called")
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], len(job["steps"])) == ("succeeded", 5)


def test_a_result_goes_through_the_policy_and_restored_values_are_refused(
    db: Database, api: httpx2.Client, tenant: str
) -> None:
    rule = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "t")
    job_id = submitted(api)
    run(db, api, job_id, "answer", calls(("weather", "{}")))
    run(db, api, job_id, "answer:1", {"text": "Ask ann@example.com.", "is_error": False})
    held = run(db, api, job_id, "answer:2", {"text": "Ask her.", "finish_reason": "stop"})
    assert "ann@" not in messages_of(held)[-1]["content"]


def test_a_job_is_run_again_with_the_tools_of_then(db: Database, api: httpx2.Client) -> None:
    job_id = submitted(api)
    with db.begin() as connection:
        stored = text("SELECT (payload #>> '{}')::json FROM jobs WHERE id = :id")
        (step,) = connection.execute(stored, {"id": job_id}).scalar_one()["steps"]
    assert "tools" not in step["input"]
    again = api.post("/v1/jobs", json={"steps": [step]})
    assert again.status_code == 202, again.text


@some_of(
    3,
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"store": True}, "store"),
        ({"stream": True, "logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"server_tools": {"names": ["theirs"]}}, "server_tools.names[0]"),
        ({"server_tools": {"names": []}}, "server_tools.names"),
        ({"server_tools": {"names": ["weather", "weather"]}}, "server_tools.names"),
        ({"server_tools": {"names": ["weather"], "max_tool_calls": 8}}, "server_tools.max_tool_calls"),
        ({"server_tools": {"names": ["weather"], "max_tool_calls": 0, "tool_choice": "required"}}, "server_tools"),
        ({"server_tools": {"names": ["weather"], "model": "wide"}}, "server_tools.model"),
    ],
)
def test_wrong_tools_are_refused_before_anything_is_stored(
    db: Database, api: httpx2.Client, changes: dict[str, Any], param: str
) -> None:
    body = {"model": "wide", "messages": [QUESTION], "server_tools": {"names": ["weather"]}} | changes
    refused = api.post("/v1/chat/completions", json=body)
    expected = 404 if "names[0]" in param else 400
    assert (refused.status_code, refused.json()["error"]["param"]) == (expected, param), refused.text
    with db.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0


def test_only_the_step_with_the_answer_has_tools(api: httpx2.Client) -> None:
    first = {"name": "a", "model": "wide", "input": {"messages": [QUESTION]}, "server_tools": {"names": ["weather"]}}
    second = {"name": "b", "model": "wide", "needs": ["a"], "input": {"messages": [QUESTION]}}
    refused = api.post("/v1/jobs", json={"steps": [first, second]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "steps[0].server_tools")


def test_a_server_of_mcp_is_all_its_tools_or_one_of_them(db: Database, api: httpx2.Client, tenant: str) -> None:
    schema = {"type": "object"}
    server = McpServer(
        type="mcp", url=URL, tools={name: {"name": name, "parameters": schema} for name in ("find", "close")}
    )
    tools.create(db, tenant, "tracker", server, actor="t")
    for names, functions in [
        (["tracker", "weather", "tracker__find"], ["tracker__find", "tracker__close", "weather"]),
        (["tracker__close"], ["tracker__close"]),
    ]:
        held = run(db, api, submitted(api, names), "answer", {"text": "no", "finish_reason": "stop"})
        assert [one["function"]["name"] for one in held.payload["input"]["tools"]] == functions
    gone = {"model": "wide", "input": {"messages": [QUESTION]}, "server_tools": {"names": ["tracker__gone"]}}
    refused = api.post("/v1/jobs", json=gone)
    assert (refused.status_code, error_of(refused)["param"]) == (404, "server_tools.names[0]")


def test_a_known_key_has_its_job_after_its_tool_was_deleted(db: Database, api: httpx2.Client, tenant: str) -> None:
    body = {"model": "wide", "input": {"messages": [QUESTION]}, "server_tools": {"names": ["weather"]}}
    first = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
    assert first.status_code == 202, first.text
    tools.delete(db, tenant, tools.named(db, tenant, ["weather"])["weather"].id, actor="t")
    assert api.post("/v1/jobs", json=body).status_code >= 400
    again = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
