"""Calls of tools against real sockets: what goes out, what comes back for the model, and what a bad tool can do."""

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from headrace.features.flows.model import ToolModel
from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools.calculator import compute
from headrace.features.flows.tools.tool_caller import ToolCaller
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.features.flows.tools.tool_results import ToolOrder, ToolResult
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.metrics.worker_metrics import Served, WorkerMetrics
from headrace.store.settings import Settings
from tests.metric_names import documented
from tests.processes import wait_for
from tests.workers.receiver import Answer, Receiver

OPEN = Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SHORT_MS = 300
LONG_MS = 20_000
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.released.set()
    receiver.close()


def caller(**changes: Any) -> ToolCaller:
    return ToolCaller(GuardedClient(OPEN), context_window=100, **{"most_of_one": 4, "sleep": lambda _: None, **changes})


def order(url: str, arguments: str = '{"city": "Rome"}', **limits: Any) -> ToolOrder:
    tool = HttpTool(url=url, parameters=CITY, headers={"X-Key": "s"}, **{"timeout_ms": LONG_MS, **limits})
    return ToolOrder("weather", arguments, "tnt_1", "job_1", tool)


def test_a_call_is_a_post_of_the_arguments_with_one_key_for_all_tries(receiver: Receiver) -> None:
    answers = iter([Answer(503), Answer(200, body="22 °C".encode())])
    receiver.answer = lambda _: next(answers)
    assert caller().call(order(receiver.url("/weather"))) == ToolResult("22 °C", status=200, tries=2)
    first, second = receiver.calls
    assert (orjson.loads(first.body), first.headers["x-key"]) == ({"city": "Rome"}, "s")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == "job_1"


@pytest.mark.parametrize(
    ("answer", "limits", "text", "tries"),
    [
        (Answer(503), {}, "status 503", 2),
        (Answer(500), {"max_attempts": 1}, "status 500", 1),
        (Answer(404, body=b"no city"), {}, "status 404: no city", 1),
        (Answer(200, body=b"x" * 9), {"max_result_bytes": 8}, "8 bytes", 1),
        (Answer(200, body=b"\xff"), {}, "UTF-8", 1),
        (Answer(200, body=b"\x00"), {}, "UTF-8", 1),
        (Answer(302, {"location": "/other"}), {}, "status 302", 1),
    ],
)
def test_an_answer_that_is_no_result_is_told_to_the_model(
    receiver: Receiver, answer: Answer, limits: dict[str, Any], text: str, tries: int
) -> None:
    receiver.answer = lambda _: answer
    found = caller().call(order(receiver.url("/"), **limits))
    assert (text in found.text, found.is_error, found.tries) == (True, True, tries)
    assert len(receiver.calls) == tries


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/slow", Answer(200)),  # no first byte
        ("/", Answer(200, drip=HEAD * 10)),  # a head that takes its time
        ("/", Answer(200, drip=HEAD + b"x" * 300)),  # half a body
        ("/", Answer(200, {"connection": "keep-alive"}, drip=HEAD + b"x" * 200)),  # a body that never ends
    ],
    ids=["first byte", "head", "half a body", "no end"],
)
def test_a_time_out_is_a_result_wherever_it_strikes(receiver: Receiver, path: str, answer: Answer) -> None:
    receiver.answer = lambda _: answer
    found = caller().call(order(receiver.url(path), timeout_ms=SHORT_MS))
    assert (found.text.endswith(" 0.3 s"), found.is_error) == (True, True)


def test_a_time_out_while_connecting_is_a_result() -> None:
    asked = threading.Event()
    client = GuardedClient(OPEN, resolve=lambda _host, _port: ["127.0.0.1"] if asked.wait(30) else [])
    slow = ToolCaller(client, context_window=100, most_of_one=4)
    found = slow.call(order("http://tools.example.com/", timeout_ms=SHORT_MS))
    asked.set()
    assert found.text.endswith(" 0.3 s")


def test_a_server_that_is_not_there_is_tried_again_and_an_address_that_is_not_allowed_is_not() -> None:
    gone = Receiver()
    url = gone.url("/")
    gone.close()
    found = caller().call(order(url))
    assert ("connection refused" in found.text, found.tries) == (True, 2)
    inside = ToolCaller(GuardedClient(Settings(webhook_allow_http=True)), context_window=1, most_of_one=1)
    assert "address" in inside.call(order(url)).text


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"city": ', "valid JSON"),
        ("[]", "JSON object"),
        ('{"city": 5}', "schema at city: "),
        ("{}", "schema: "),
    ],
)
def test_arguments_that_do_not_fit_are_not_sent(receiver: Receiver, arguments: str, why: str) -> None:
    found = caller().call(order(receiver.url("/"), arguments))
    assert (why in found.text, found.is_error, receiver.calls) == (True, True, [])


def test_a_tool_without_answers_is_not_called_for_a_while_and_others_are(receiver: Receiver) -> None:
    now = 1000.0
    calls = caller(clock=lambda: now)
    receiver.answer = lambda call: Answer(503) if call.path == "/dead" else Answer(200, body=b"ok")
    dead = order(receiver.url("/dead"), max_attempts=1)
    for _ in range(3):
        assert calls.call(dead).status == 503
    refused = calls.call(dead)
    assert (refused.status, "tool weather" in refused.text) == (None, True)
    other = ToolOrder("other", dead.arguments, "tnt_1", "job_2", order(receiver.url("/")).tool)
    assert calls.call(other).text == "ok"
    stranger = ToolOrder("weather", dead.arguments, "tnt_2", "job_3", other.tool)
    assert calls.call(stranger).text == "ok"
    now += 60
    receiver.answer = lambda _: Answer(200, body=b"back")
    assert [calls.call(dead).text for _ in range(2)] == ["back", "back"]


def test_calls_and_circuits_are_counted_and_logged_without_contents(receiver: Receiver) -> None:
    now = 1000.0
    metrics = WorkerMetrics(Served("tools", "1", "call_tool"))
    before = names_of(metrics)
    calls = caller(clock=lambda: now, turn_s=0.0)
    calls.on_call = metrics.add_calls(calls.num_open)
    receiver.answer = lambda _: Answer(503)
    dead = order(receiver.url("/"), max_attempts=1)
    with structlog.testing.capture_logs() as told:
        calls.call(ToolOrder("calculator", '{"expression": "1"}'))
        for _ in range(4):
            calls.call(dead)
        calls.call(replace(dead, refusal="no"))
        opened = value_of(metrics, "headrace_tool_circuits_open")
        now += 60
        receiver.answer = lambda _: Answer(200, body=b"back")
        calls.call(dead)
    assert (opened, value_of(metrics, "headrace_tool_circuits_open")) == (1.0, 0.0)
    counted = {
        (kind, result): value_of(metrics, "headrace_tool_call_seconds_count", kind=kind, result=result)
        for kind, result in (("builtin", "ok"), ("http", "error"), ("http", "paused"), ("http", "not_called"))
    }
    assert [*counted.values()] == [1.0, 3.0, 1.0, 1.0]
    assert names_of(metrics) - before == documented("Worker of tools") - documented("no process")
    events = [one["event"] for one in told]
    assert (events.count("tool_call_failed"), events.count("tool_circuit_opened"), events[-1]) == (
        5,
        1,
        "tool_circuit_closed",
    )
    assert not [one for one in told if "Rome" in str(one)]


def names_of(metrics: WorkerMetrics) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.MULTILINE))


def value_of(metrics: WorkerMetrics, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(metrics.render().decode())
    samples = [one for family in families for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


def test_a_slow_tool_gets_some_slots_and_leaves_the_others(receiver: Receiver) -> None:
    calls = caller(most_of_one=1, turn_s=0.01)
    receiver.answer = lambda _: Answer(200, body=b"ok")
    found: list[ToolResult] = []
    slow = threading.Thread(target=lambda: found.append(calls.call(order(receiver.url("/slow")))))
    slow.start()
    wait_for(lambda: len(receiver.calls) == 1, "the slow call arrives")
    assert "weather is busy" in calls.call(order(receiver.url("/slow"))).text
    other = ToolOrder("other", '{"city": "Rome"}', "tnt_1", "job_2", order(receiver.url("/")).tool)
    assert calls.call(other).text == "ok"
    receiver.released.set()
    slow.join(30)
    assert [one.text for one in found] == ["ok"]
    assert calls.call(order(receiver.url("/"))).text == "ok"


def test_there_may_be_no_such_tool_and_the_calculator_is_always_there() -> None:
    assert "tool gone" in caller().call(ToolOrder("gone", "{}")).text
    made = caller().call(ToolOrder("calculator", '{"expression": "2 * (3 + 4) / 7"}'))
    assert made == ToolResult("2.0")
    assert caller().call(ToolOrder("calculator", '{"formula": "1"}')).is_error


def test_a_call_that_was_refused_before_it_was_a_job_is_not_made() -> None:
    calls = caller()
    model = ToolModel(None, calls, CALL_TOOL)
    call = {"tool": "calculator", "arguments": {"expression": "1"}}
    made, refused = (model.read({"input": {**call, **more}}).options for more in ({}, {"refusal": "No."}))
    assert calls.call(made).text == "1"
    assert calls.call(refused).text.endswith("not made: No.")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7 // 2 + -3 % 5", "5"),
        ("2 ** 10", "1024"),
        (" 1.5e3 ", "1500.0"),
        ("12345678901234567890 * 3", "37037036703703703670"),
    ],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert compute(expression) == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("1 / 0", "by zero"),
        ("9 ** 9 ** 9", "exponent"),
        ("1e99 * 1e9", "too large"),
        ("(-8) ** 0.5", "real number"),
        ("__import__('os')", "alone"),
        ("True + 1", "alone"),
        ("2 +", "not arithmetic"),
        ("(" * 150 + "1", "not arithmetic"),
        ("1" * 201, "200 characters"),
    ],
)
def test_the_calculator_refuses_what_is_no_arithmetic(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compute(expression)
