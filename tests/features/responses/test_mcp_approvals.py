"""Calls in responses that need an approval, asked and answered by the official client."""

from typing import Any

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI
from openai.types.responses.response_input_param import McpApprovalResponse
from openai.types.responses.response_output_item import McpApprovalRequest

from headrace.features.flows.store.approvals import verdict_of
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import McpServer
from headrace.features.flows.tools.tool_results import refusal_of
from headrace.features.policy import policies
from headrace.features.responses.mcp_approvals import ASKED, answered_calls, merged_rule
from headrace.features.responses.mcp_tools import CalledTools
from headrace.features.responses.response_request import ResponseRequest
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.payloads.job_payload import EVERY_MODEL
from headrace.store.payloads.server_tools import ServerTools
from headrace.store.tenants.api_keys import create_key, create_tenant
from tests.cases import some_of
from tests.features.responses.test_mcp_tools import ASKING, CALL, SERVER, tracker, until, worker_of
from tests.producer_api.calling import num_jobs
from tests.producer_api.conftest import MakeClient
from tests.refusals import Naming

__all__ = ["tracker"]  # a fixture

CLOSE = '{"name": "tracker__close", "arguments": {"number": 7}}'
ALWAYS: Any = {**SERVER, "require_approval": "always"}
CAREFUL: Any = ASKING | {"tools": [ALWAYS]}
TOOLS: Any = {"model": "wide", "tools": [ALWAYS]}


def answer_to(asked: McpApprovalRequest, *, approve: bool, reason: str | None = None) -> McpApprovalResponse:
    made: McpApprovalResponse = {
        "type": "mcp_approval_response",
        "approval_request_id": asked.id,
        "approve": approve,
    }
    return made if reason is None else {**made, "reason": reason}


def worker_job(response_id: str) -> str:
    return response_id.replace("resp_", "job_")


def asked_for(
    db: Database, client: redis.Redis, api: httpx2.Client, openai: OpenAI, *texts: str, **changes: Any
) -> tuple[str, list[McpApprovalRequest]]:
    """Make a response whose model says these texts; return its id and the approvals that it asks for."""
    made = openai.responses.create(**CAREFUL | changes, background=True)
    worker_of(db, client, api, made.id).say("answer", *texts)
    whole = openai.responses.retrieve(made.id)
    assert whole.status == "completed"
    return made.id, [item for item in whole.output if isinstance(item, McpApprovalRequest)]


def test_a_response_ends_at_its_calls(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    with openai.responses.create(**CAREFUL, stream=True) as stream:
        events = iter(stream)
        made = next(events).response.id
        worker_of(db, redis_client, api, made).say("answer", "Let me see.\n", CALL, f"\n{CLOSE}")
        live: list[Any] = list(events)
    ended = live[-1].response
    assert (live[-1].type, ended.status) == ("response.completed", "completed")
    _, said, one, two = ended.output
    assert (said.content[0].text, one.server_label, one.name) == ("Let me see.", "Issues", "find.all")
    assert (type(two), two.name, two.arguments) == (McpApprovalRequest, "close", '{"number": 7}')
    for asked in (one, two):
        told = [event.type for event in live if getattr(event, "item", None) == asked]
        assert told == ["response.output_item.added", "response.output_item.done"]
    assert openai.responses.retrieve(made).output == ended.output
    number = live[-4].sequence_number
    assert list(openai.responses.retrieve(made, stream=True, starting_after=number)) == live[-3:]
    assert api.get("/v1/approvals").json()["data"] == []


def test_the_next_response_begins_with_the_calls_approved_or_refused(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    first, (one, two) = asked_for(db, redis_client, api, openai, CALL, f"\n{CLOSE}")
    answers: Any = [answer_to(two, approve=False), answer_to(one, approve=True)]
    with openai.responses.create(**TOOLS, input=answers, previous_response_id=first, stream=True) as stream:
        events = iter(stream)
        second = next(events).response.id
        worker = worker_of(db, redis_client, api, second)
        held = worker.call("call_1", "Number 7.")
        live: list[Any] = until(events, "mcp_call.completed")
        worker.call("call_2", "Error: no", is_error=True)
        turns = worker.say("answer", "It is ", "open.").payload["input"]["messages"]
        live += list(events)
    assert held.payload["input"] == {"tool": "tracker__find", "arguments": "{}"}
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "tool"]
    assert [call["function"]["name"] for call in turns[1]["tool_calls"]] == ["tracker__find", "tracker__close"]
    assert [turn["content"] for turn in turns[2:]] == ["Number 7.", "Error: no"]
    done = live[-1].response
    _, made, refused, last = done.output
    assert (made.type, made.approval_request_id, made.output) == ("mcp_call", one.id, "Number 7.")
    assert (refused.approval_request_id, refused.status, last.content[0].text) == (two.id, "failed", "It is open.")
    assert [event.item for event in live if event.type == "response.output_item.done"] == done.output
    assert openai.responses.retrieve(second).output == done.output
    assert "answered" not in done.to_dict()
    third = openai.responses.create(**TOOLS, input="Why?", previous_response_id=second, background=True)
    later = worker_of(db, redis_client, api, third.id).say("answer", "So.").payload["input"]["messages"]
    assert [turn["role"] for turn in later] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert [turn["content"] for turn in later[2:4]] == ["Number 7.", "Error: no"]


def test_a_call_whose_arguments_do_not_fit_fails_and_the_others_are_asked_for(
    db: Database, tenant: str, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    (mine,) = tools.list_tools(db, tenant)
    stored = mine.definition.model_dump()
    stored["tools"]["close"]["parameters"] = {"type": "object", "required": ["number"]}
    tools.replace(db, tenant, mine.id, McpServer.model_validate(stored), actor="t")
    bare = '{"name": "tracker__close", "arguments": {}}'
    with openai.responses.create(**CAREFUL, stream=True) as stream:
        events = iter(stream)
        first = next(events).response.id
        worker_of(db, redis_client, api, first).say("answer", CALL, f"\n{bare}")
        live: list[Any] = list(events)
    _, failed, asked = live[-1].response.output
    assert (failed.type, failed.name, failed.status) == ("mcp_call", "close", "failed")
    assert failed.error.content[0]["text"].startswith("Error: the arguments")
    assert (type(asked), asked.name) == (McpApprovalRequest, "find.all")
    assert [event.item for event in live if event.type == "response.output_item.done"] == live[-1].response.output
    assert [event.type for event in live].count("response.mcp_call.failed") == 1
    assert openai.responses.retrieve(first).output == live[-1].response.output
    second = openai.responses.create(
        **TOOLS, input=[answer_to(asked, approve=True)], previous_response_id=first, background=True
    )
    worker = worker_of(db, redis_client, api, second.id)
    worker.call("call_1", "Number 7.")
    turns = worker.say("answer", bare).payload["input"]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant", "tool"]
    assert [turns[place]["content"] for place in (2, 4)] == [failed.error.content[0]["text"], "Number 7."]
    worker.call("answer:1", "Error: the arguments", is_error=True)
    worker.say("answer:2", "I cannot.")
    assert [item.type for item in openai.responses.retrieve(second.id).output[1:]] == [
        "mcp_call",
        "mcp_call",
        "message",
    ]


@some_of(1, ("approved", "most", "left"), [(1, 1, 0), (1, 2, 1), (0, 1, 1)])
def test_calls_that_were_approved_count_for_the_limit(
    db: Database,
    redis_client: redis.Redis,
    api: httpx2.Client,
    openai: OpenAI,
    approved: int,
    most: int,
    left: int,
) -> None:
    first, asked = asked_for(db, redis_client, api, openai, CALL, f"\n{CLOSE}")
    answers: Any = [answer_to(one, approve=number < approved) for number, one in enumerate(asked)]
    given: Any = {"input": answers, "previous_response_id": first, "background": True, "max_tool_calls": most}
    made = openai.responses.create(model="wide", tools=[SERVER], tool_choice="required", **given)
    worker = worker_of(db, redis_client, api, made.id)
    for step in ("call_1", "call_2"):
        worker.call(step, "Done.")
    held = worker.say("answer", CALL, f"\n{CALL}").payload["input"]
    assert held["tool_choice"] == ("required" if left else "none")
    assert len(held["tools"]) == 2
    if left:
        worker.call("answer:1", "Done.")
        assert worker.say("answer:2", CALL).payload["input"]["tool_choice"] == "none"
    items = openai.responses.retrieve(made.id).output
    assert [item.type for item in items] == ["mcp_list_tools", *["mcp_call"] * (2 + left), "message"]
    assert openai.responses.retrieve(made.id).max_tool_calls == most


def test_more_approvals_than_the_limit_are_refused(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    first, asked = asked_for(db, redis_client, api, openai, CALL, f"\n{CLOSE}")
    answers: Any = [answer_to(one, approve=True) for one in asked]
    before = num_jobs(db)
    with pytest.raises(sdk.BadRequestError, match="2 calls") as refused:
        openai.responses.create(**TOOLS, input=answers, previous_response_id=first, max_tool_calls=1)
    assert (refused.value.param, num_jobs(db)) == ("max_tool_calls", before)


def test_the_worker_of_a_call_reads_the_answer_as_the_policy_left_it(
    db: Database, tenant: str, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    rule = {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"}
    policies.put(db, tenant, EVERY_MODEL, {"version": 1, "rules": [rule]}, "t")
    first, (one, two) = asked_for(db, redis_client, api, openai, CALL, f"\n{CLOSE}")
    answers: Any = [answer_to(one, approve=True), answer_to(two, approve=False, reason="Ask ann@example.com first.")]
    made = openai.responses.create(**TOOLS, input=answers, previous_response_id=first, background=True)
    steps = {step["name"]: step["job_id"] for step in api.get(f"/v1/jobs/{worker_job(made.id)}").json()["steps"]}
    assert refusal_of(verdict_of(db, tenant, steps["call_1"])) is None
    refusal = refusal_of(verdict_of(db, tenant, steps["call_2"]))
    assert refusal is not None
    assert "ann@" not in refusal
    again = api.get(f"/v1/jobs/{worker_job(made.id)}/request").json()["body"]["steps"]
    inputs = {step["name"]: step["input"] for step in again}
    assert "refusal" not in inputs["call_1"]
    assert inputs["call_2"]["refusal"] in refusal
    states = [(one["id"], one["status"]) for one in api.get("/v1/approvals", params={"order": "asc"}).json()["data"]]
    assert states == [(one.id, "approved"), (two.id, "refused")]
    noted = [(entry.action, entry.resource) for entry in audit.list_entries(db, tenant_id=tenant)]
    assert {("tool_call.approved", one.id), ("tool_call.refused", two.id)} <= set(noted)


@some_of(
    3,
    ("stored", "rule", "text", "is_asked"),
    [
        ("never", "never", CALL, False),
        ("never", None, CALL, True),
        ("never", {"always": {"tool_names": ["find.all"]}}, CALL, True),
        ("never", {"always": {"tool_names": ["find.all"]}}, CLOSE, False),
        ("never", {"never": {"tool_names": ["find.all"]}}, CALL, False),
        ("never", {"never": {"tool_names": ["find.all"]}}, CLOSE, True),
        ("always", "never", CALL, True),
    ],
)
def test_a_call_needs_an_approval_if_the_tool_or_the_request_says_so(
    db: Database,
    tenant: str,
    redis_client: redis.Redis,
    api: httpx2.Client,
    openai: OpenAI,
    stored: str,
    rule: object,
    text: str,
    is_asked: bool,
) -> None:
    (mine,) = tools.list_tools(db, tenant)
    definition = McpServer.model_validate({**mine.definition.model_dump(), "require_approval": stored})
    tools.replace(db, tenant, mine.id, definition, actor="t")
    made = openai.responses.create(**CAREFUL | {"tools": [ALWAYS | {"require_approval": rule}]}, background=True)
    worker_of(db, redis_client, api, made.id).say("answer", text)
    output = openai.responses.retrieve(made.id).output
    assert [type(item) for item in output[1:]] == ([McpApprovalRequest] if is_asked else [])
    steps = api.get(f"/v1/jobs/{worker_job(made.id)}").json()["steps"]
    assert len(steps) == (1 if is_asked else 3)


def test_an_answer_that_fits_no_request_is_refused(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI, make_client: MakeClient
) -> None:
    first, (asked,) = asked_for(db, redis_client, api, openai, CALL)
    other, _ = asked_for(db, redis_client, api, openai, CALL)
    yes = answer_to(asked, approve=True)
    unknown = {**yes, "approval_request_id": "mcpr_1"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"input": [yes]}, 400, "input[0].approval_request_id"),
        ({"input": [yes], "previous_response_id": other}, 404, "input[0].approval_request_id"),
        ({"input": [yes, yes], "previous_response_id": first}, 400, "input[1].approval_request_id"),
        ({"input": [unknown], "previous_response_id": first}, 404, "input[0].approval_request_id"),
        ({"input": [{**yes, "approve": None}], "previous_response_id": first}, 400, "input[0].approve"),
        ({"input": "Go on.", "previous_response_id": first}, 400, "input"),
        ({"input": [yes], "previous_response_id": first, "tools": []}, 400, "tools"),
    ]  # fmt: skip
    before = num_jobs(db)
    for changes, status, param in cases:
        refused = api.post("/v1/responses", json=TOOLS | changes)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text
    stranger = make_client(create_key(db, create_tenant(db, "hooli"), "s", ["jobs:read", "jobs:write"], actor="t"))
    body: dict[str, Any] = {"model": "wide", "input": [yes], "previous_response_id": first}
    assert stranger.post("/v1/responses", json=body).status_code == 404
    assert num_jobs(db) == before


def test_an_approval_is_answered_once_also_when_the_request_is_sent_again(
    db: Database, redis_client: redis.Redis, api: httpx2.Client, openai: OpenAI
) -> None:
    first, (asked,) = asked_for(db, redis_client, api, openai, CALL)
    given: Any = {"input": [answer_to(asked, approve=True)], "previous_response_id": first, "background": True}
    key = {"Idempotency-Key": "once"}
    made = openai.responses.create(**TOOLS, **given, extra_headers=key)
    before = num_jobs(db)
    assert openai.responses.create(**TOOLS, **given, extra_headers=key).id == made.id
    with pytest.raises(sdk.BadRequestError, match="answered before"):
        openai.responses.create(**TOOLS, **given)
    assert num_jobs(db) == before


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {"always": ["s__a"]}),
        ("always", {"always": ["s__a", "own"]}),
        ({"always": {"tool_names": ["own"]}}, {"always": ["s__a", "own"]}),
        ({"never": {"tool_names": ["own"]}}, {"always": ["s__a"], "never": ["own", "s__b"]}),
    ],
)
def test_the_rule_for_tools_by_name_is_for_these_alone(given: Any, wanted: dict[str, list[str]]) -> None:
    own = None if given is None else ServerTools.model_validate({"names": ["own"], "require_approval": given})
    assert merged_rule(own, ["s__a"], ["s__b"]) == {name: {"tool_names": names} for name, names in wanted.items()}
    assert merged_rule(None, [], ["s__b"]) == "never"


def test_a_response_that_is_not_stored_cannot_ask(db: Database, api: httpx2.Client) -> None:
    refused = api.post("/v1/responses", json=CAREFUL | {"store": False})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools[0].require_approval")
    assert num_jobs(db) == 0


def pending(approval_id: str, name: str, label: str = "Issues") -> dict[str, Any]:
    return {"id": approval_id, "type": ASKED, "server_label": label, "name": name, "arguments": f"{{{name}}}"}


ANSWER = [{"id": "msg_1", "type": "message"}, pending("mcpr_1", "find.all"), pending("mcpr_2", "own", "headrace")]
LISTED = [
    {"server_label": "Other", "tools": [{"name": "find.all", "function": "other__find"}]},
    {"server_label": "Issues", "tools": [{"name": "find.all", "function": "tracker__find"}]},
]
CALLED = CalledTools(ServerTools(names=("tracker", "own")), LISTED)


def answering(*answers: dict[str, Any], **fields: Any) -> ResponseRequest:
    given = [{"type": "mcp_approval_response", **one} for one in answers]
    own = {"names": ["own"]}
    asked = {"model": "m", "input": given or "x", "previous_response_id": "resp_1", "server_tools": own}
    return ResponseRequest.model_validate(asked | fields)


YES, NO = (
    {"approval_request_id": "mcpr_2", "approve": True},
    {"approval_request_id": "mcpr_1", "approve": False, "reason": "Ask first."},
)


def test_the_calls_are_answered_in_the_order_in_which_the_model_asked() -> None:
    assert answered_calls(answering(YES, NO), ANSWER, LISTED, CALLED) == (
        AnsweredCall("mcpr_1", "tracker__find", "{find.all}", "Ask first."),
        AnsweredCall("mcpr_2", "own", "{own}", None),
    )
    without_reason = {"approval_request_id": "mcpr_1", "approve": False}
    first, _ = answered_calls(answering(YES, without_reason), ANSWER, LISTED, CALLED)
    assert first.refusal == ""
    assert answered_calls(answering(), ANSWER[:1], LISTED, None) == ()


WHERE = "input[0].approval_request_id"


@pytest.mark.parametrize(
    ("request_sent", "called", "param", "named"),
    [
        (answering(NO), CALLED, "input",
         "mcpr_2"),
        (answering({"approve": True}), CALLED, WHERE, "required"),
        (answering(YES, YES), CALLED, "input[1].approval_request_id",
         "twice"),
        (answering(YES, previous_response_id=None), CALLED, WHERE,
         "`previous_response_id`"),
        (answering({"approval_request_id": "mcpr_3", "approve": True}, NO), CALLED, WHERE,
         "mcpr_3"),
        (answering(YES, NO), None, "tools",
         "tracker__find"),
        (answering(YES, NO, server_tools=None), CALLED, "tools",
         "own was"),
        (answering(YES, NO, prompt={"id": "pmpt_1"}), CALLED, "prompt",
         "`prompt`"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_names_its_place(
    request_sent: ResponseRequest, called: CalledTools | None, param: str, named: str
) -> None:
    with pytest.raises((InvalidRequest, NotFound)) as refused:
        answered_calls(request_sent, ANSWER, LISTED, called)
    assert (refused.value.param, refused.value.message) == (param, Naming(named))
    assert isinstance(refused.value, NotFound) == (named == "mcpr_3")
