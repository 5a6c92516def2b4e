"""Steps with server tools, and calls that were approved. No services."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.flows import tool_steps
from headrace.features.flows.retrieval_steps import as_flow
from headrace.features.flows.tool_steps import (
    check_tools,
    server_tools_of,
    with_answered_calls,
    with_tools,
    without_tools,
)
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.features.flows.tools.tools import StoredTool
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.registry.models import ModelVersion
from headrace.store.tenants.api_keys import Principal
from tests.producer_api.submission.steps.making import (
    AT,
    CALLER,
    PRINCIPAL,
    QUESTION,
    STORES,
    VERSION,
    parts,
    request,
    step,
)
from tests.refusals import Naming, refusal

TOOLS = {"names": ["weather"]}


@pytest.mark.parametrize(
    ("fields", "named", "param"),
    [
        (
            {"server_tools": TOOLS | {"max_tool_calls": -1}},
            "to 0",
            "server_tools.max_tool_calls",
        ),
        ({"server_tools": {"names": ["a", "a"]}}, "twice", "server_tools.names"),
        ({"server_tools": TOOLS, "n": 2}, "`n`", "n"),
        (
            {"server_tools": TOOLS, "retrieval": STORES},
            "`retrieval`",
            "retrieval",
        ),
        (
            {"server_tools": TOOLS, "input": {"messages": [QUESTION], "tool_choice": "auto"}},
            "`tool_choice`",
            "input.tool_choice",
        ),
        (
            {"server_tools": TOOLS, "input": {"messages": [QUESTION], "tools": []}},
            "`tools`",
            "input.tools",
        ),
        (
            {"server_tools": TOOLS, "input": {"prompt": "x"}},
            "`messages`",
            "server_tools",
        ),
    ],
)
def test_server_tools_that_do_not_go_are_refused(fields: dict[str, Any], named: str, param: str) -> None:
    assert refusal(server_tools_of, step(**fields)) == (
        InvalidRequest,
        Naming("`server_tools", named),
        "invalid_value",
        param,
    )


def test_only_the_answer_has_tools_and_each_call_takes_two_steps() -> None:
    calling, plain = step("a", server_tools=TOOLS | {"max_tool_calls": 7}), step("b")
    check_tools([calling], calling, 15)
    check_tools([plain, calling], calling, 16)
    _, message, *place = refusal(check_tools, [calling], calling, 14)
    assert place == ["invalid_value", "steps[0].server_tools.max_tool_calls"]
    assert all(named in message for named in ("14 (HEADRACE_MAX_STEPS)", "6 calls"))
    assert refusal(check_tools, [plain, calling], plain, 16)[2:] == ("invalid_value", "steps[1].server_tools")


def stored(name: str, **fields: Any) -> StoredTool:
    definition = HttpTool(url="https://tools.example.com/", description=f"About {name}.", **fields)
    return StoredTool(f"tool_{name}", "acme", name, definition, AT, AT)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, StoredTool]:
    """The tools of the tenant ``acme``, by name."""
    found = {"weather": stored("weather"), "pay": stored("pay", require_approval="always")}

    def named(_db: object, tenant_id: str, names: Sequence[str]) -> dict[str, StoredTool]:
        return {name: found[name] for name in names if name in found} if tenant_id == "acme" else {}

    monkeypatch.setattr("headrace.features.flows.tool_steps.tools.named", named)
    models = [SimpleNamespace(name=name, task=task) for name, task in (("tiny", "generate"), ("tools", "call_tool"))]
    monkeypatch.setattr("headrace.features.flows.tool_steps.models.list_models", lambda _: models)
    return found


def wanted(**fields: Any) -> Any:
    return server_tools_of(step(server_tools=TOOLS | fields))


@pytest.mark.usefixtures("tools")
def test_a_step_gets_its_tools_as_functions_and_what_may_follow() -> None:
    body, then = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(max_tool_calls=4))
    function = {"name": "weather", "description": "About weather.", "parameters": {"type": "object", "properties": {}}}
    assert body.input == {"messages": [QUESTION], "tools": [{"type": "function", "function": function}]}
    assert then == {"kind": "tools", "calls_left": 4, "model": "tools", "version": 1}
    body, _ = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(tool_choice="required"))
    assert body.input["tool_choice"] == "required"
    body, _ = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(max_tool_calls=0))
    assert body.input["tool_choice"] == "none"
    assert without_tools(body.input) == {"messages": [QUESTION]}


@pytest.mark.usefixtures("tools")
def test_calls_wait_for_an_approval_as_the_request_or_the_tool_says() -> None:
    def waiting(ends: bool = False, **fields: Any) -> Any:
        _, then = with_tools(parts(CALLER), PRINCIPAL, step(), wanted(approval_timeout_ms=1500, **fields), ends=ends)
        return then["kind"], then.get("approval")

    assert waiting() == ("tools", None)
    kind = "tools_with_approval"
    assert waiting(require_approval="always") == (kind, {"names": ["weather"], "within_s": 1.5})
    assert waiting(names=["weather", "pay"], ends=True) == (kind, {"names": ["pay"], "within_s": 1.5, "ends": True})
    by_name = {"always": {"tool_names": ["weather"]}}
    assert waiting(names=["pay", "weather", "calculator"], require_approval=by_name) == (
        kind,
        {"names": ["pay", "weather"], "within_s": 1.5},
    )


@pytest.mark.usefixtures("tools")
def test_tools_and_callers_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(principal: Principal = PRINCIPAL, found: ModelVersion = CALLER, **fields: Any) -> Any:
        return refusal(with_tools, parts(found), principal, step(), wanted(**fields))

    kind, message, *place = refused(names=["weather", "gone"])
    assert (kind, "gone" in message, place) == (NotFound, True, ["not_found", "server_tools.names[1]"])
    assert refused(Principal("globex", "key_2", frozenset()))[3] == "server_tools.names[0]"
    _, message, *place = refused(require_approval={"always": {"tool_names": ["pay"]}})
    assert place == ["invalid_value", "server_tools.require_approval"]
    assert ("pay" in message, "weather" in message) == (True, True)
    _, message, *place = refused(found=VERSION)
    assert ("tiny" in message, place) == (True, ["invalid_value", "server_tools.model"])
    assert refused(replace(PRINCIPAL, models=frozenset({"tools"})), model="other")[2] == "model_not_allowed"
    none = Naming("--task call_tool", "headrace worker")
    assert refused(replace(PRINCIPAL, models=frozenset({"tiny"})))[1:] == (none, "invalid_value", "server_tools")
    several = [SimpleNamespace(name=name, task="call_tool") for name in ("one", "two")]
    monkeypatch.setattr("headrace.features.flows.tool_steps.models.list_models", lambda _: several)
    _, message, *place = refused()
    assert ("(one, two)" in message, place) == (True, ["invalid_value", "server_tools.model"])
    monkeypatch.setattr(tool_steps, "MAX_TOOLS", 1)
    with_tools(parts(CALLER), PRINCIPAL, step(), wanted(model="tools"))
    assert refused(names=["weather", "pay"])[1:] == (
        Naming("2 functions", "most 1"),
        "invalid_value",
        "server_tools.names",
    )


@pytest.mark.usefixtures("tools")
def test_answered_calls_are_the_first_steps_of_the_next_job() -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": "x", "arguments": "{}"}}
        for name in ("apr_1", "apr_2", "own")
    ]
    turns = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": name, "content": "y"} for name in ("apr_1", "apr_2", "own")),
    ]
    flow = as_flow(request({"messages": turns}, server_tools=TOOLS | {"max_tool_calls": 3}))
    answered = [AnsweredCall("apr_1", "weather", '{"a": 1}'), AnsweredCall("apr_2", "pay", "{}", "no")]
    answer, first, second = with_answered_calls(parts(CALLER), PRINCIPAL, flow, answered).steps
    names = (first.name, second.name)
    assert answer.needs == names
    assert [(one.task, one.model) for one in (first, second)] == [("call_tool", "tools@1")] * 2
    assert first.input == {"tool": "weather", "arguments": '{"a": 1}'}
    assert second.input == {"tool": "pay", "arguments": "{}", "refusal": "no"}
    assert answer.own_fields["server_tools"] == {"names": ["weather"], "max_tool_calls": 2}
    messages = answer.input["messages"]
    assert [one["function"]["name"] for one in messages[1]["tool_calls"]] == ["weather", "pay", "x"]
    assert [one["content"] for one in messages[2:]] == [
        {"$from": f"{names[0]}.output.text"},
        {"$from": f"{names[1]}.output.text"},
        "y",
    ]
    assert with_answered_calls(parts(CALLER), PRINCIPAL, flow, []) is flow
    few = parts(CALLER)
    for most_steps, left in ((6, 1), (5, 1), (4, 0)):
        few.settings.max_steps = most_steps
        (answer, *_) = with_answered_calls(few, PRINCIPAL, flow, answered).steps
        assert answer.own_fields["server_tools"]["max_tool_calls"] == left, (
            "a call and the turn behind it are two steps"
        )
    one = as_flow(request({"messages": turns}, server_tools=TOOLS | {"max_tool_calls": 1, "tool_choice": "required"}))
    (answer, *_) = with_answered_calls(parts(CALLER), PRINCIPAL, one, answered).steps
    assert answer.own_fields["server_tools"] == {"names": ["weather"], "max_tool_calls": 0, "tool_choice": "auto"}
    none = as_flow(request({"messages": turns}, server_tools=TOOLS | {"max_tool_calls": 0}))
    assert refusal(with_answered_calls, parts(CALLER), PRINCIPAL, none, answered)[1:] == (
        Naming("1 calls", "`max_tool_calls` is 0"),
        "invalid_value",
        "server_tools.max_tool_calls",
    )
