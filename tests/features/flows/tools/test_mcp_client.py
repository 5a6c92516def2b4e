"""The protocol of MCP against scripted answers: what goes out, what ends a stream, and what is no answer."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from headrace.features.flows.tools.mcp_client import McpRefused, McpStatus, mcp_session
from headrace.store.calls.ssrf_guard import AnswerTooLong, CallTimedOut, GuardedClient
from headrace.store.settings import Settings
from tests.workers.receiver import Answer, Call, Receiver

OPEN = Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
WELCOME = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
LONG_S = 60.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def as_json(call: Call, **told: Any) -> Answer:
    body = {"jsonrpc": "2.0", "id": orjson.loads(call.body)["id"], **told}
    return Answer(200, {"content-type": "application/json"}, orjson.dumps(body))


def server(answer: Callable[[Call], Answer], welcome: dict[str, Any] = WELCOME) -> Callable[[Call], Answer]:
    """Return a server that shakes hands, and answers all else by ``answer``."""

    def respond(call: Call) -> Answer:
        method = orjson.loads(call.body)["method"] if call.body else "DELETE"
        if method == "initialize":
            shaken = as_json(call, result=welcome)
            return Answer(200, {**shaken.headers, "Mcp-Session-Id": "s1"}, shaken.body)
        return Answer(202) if method in ("notifications/initialized", "DELETE") else answer(call)

    return respond


def called(receiver: Receiver, timeout_s: float = LONG_S, most_bytes: int = 10_000) -> Any:
    with mcp_session(GuardedClient(OPEN), receiver.url("/mcp"), {"X-Key": "k"}, timeout_s) as session:
        return session.call_tool("add", {"a": 1}, "job_1", most_bytes)


def test_a_session_begins_calls_and_ends(receiver: Receiver) -> None:
    receiver.answer = server(lambda call: as_json(call, result={"content": []}))
    assert called(receiver) == {"content": []}
    sent = [orjson.loads(call.body) if call.body else {} for call in receiver.calls]
    assert [message.get("method") for message in sent] == [
        "initialize",
        "notifications/initialized",
        "tools/call",
        None,
    ]
    assert sent[2]["params"] == {"name": "add", "arguments": {"a": 1}, "_meta": {"idempotency-key": "job_1"}}
    hello, *later = (call.headers for call in receiver.calls)
    assert {(one["content-type"], one["accept"]) for one in (hello, *later)} == {
        ("application/json", "application/json, text/event-stream")
    }
    assert ("mcp-session-id" in hello, hello["x-key"]) == (False, "k")
    assert {(one["mcp-session-id"], one["mcp-protocol-version"], one["x-key"]) for one in later} == {
        ("s1", "2025-06-18", "k")
    }
    assert [call.headers.get("idempotency-key") for call in receiver.calls] == [None, None, "job_1", None]


def test_a_server_without_a_session_gets_no_request_at_the_end(receiver: Receiver) -> None:
    def respond(call: Call) -> Answer:
        if "id" not in orjson.loads(call.body):
            return Answer(202)
        told = as_json(call, result=WELCOME | {"content": []}).body
        # The stream has no blank line behind its last event.
        return Answer(
            200, {"content-type": "text/event-stream; charset=utf-8"}, b"event: message\ndata: " + told + b"\n"
        )

    receiver.answer = respond
    assert called(receiver) == WELCOME | {"content": []}
    assert len(receiver.calls) == 3


def test_a_server_that_does_not_answer_the_end_of_its_session_has_answered(receiver: Receiver) -> None:
    respond = server(lambda call: as_json(call, result={"content": []}))
    receiver.answer = lambda call: respond(call) if call.body else Answer(drip=b"no HTTP")
    assert called(receiver) == {"content": []}


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_stream_is_left_behind_the_answer(receiver: Receiver, line_end: bytes) -> None:
    def stream(call: Call) -> Answer:
        mine = orjson.loads(call.body)["id"]
        progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
        asked = {"jsonrpc": "2.0", "id": mine, "method": "ping"}
        found = orjson.dumps({"jsonrpc": "2.0", "id": mine, "result": {"content": [], "more": 1}})
        head, comma, tail = found.partition(b",")
        events = [
            b"data: " + orjson.dumps(progress),
            b"",
            b"data:" + orjson.dumps(asked),
            b"",
            b": note",
            b"id: 7",
            b"event: message",
            b"data: " + head + comma,
            b"data:" + tail,
            b"",
            b"",
        ]
        # It has no end: only the answer ends the reading.
        return Answer(200, {"content-type": "text/event-stream"}, line_end.join(events), endless=True)

    receiver.answer = server(stream)
    assert called(receiver, most_bytes=10**9) == {"content": [], "more": 1}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda call: as_json(call, error={"code": -32602, "message": "no such tool"}), "no such tool"),
        (lambda call: as_json(call, result=[]), "no result"),
        (lambda _: Answer(200, {"content-type": "application/json"}, b"<html>"), "no answer"),
        (lambda _: Answer(200, {"content-type": "application/json"}, b'{"id": 99, "result": {}}'), "no answer"),
        (lambda _: Answer(200, {"content-type": "text/event-stream"}, b"event: ping\n\n"), "no answer"),
        (lambda _: Answer(202), "no answer"),
    ],
)
def test_what_is_no_result_is_refused(receiver: Receiver, answer: Callable[[Call], Answer], why: str) -> None:
    receiver.answer = server(answer)
    with pytest.raises(McpRefused, match=why):
        called(receiver)


def test_another_version_another_status_and_too_much_are_refused(receiver: Receiver) -> None:
    receiver.answer = server(lambda _: Answer(204), WELCOME | {"protocolVersion": "1999-01-01"})
    with pytest.raises(McpRefused, match="another version"):
        called(receiver)
    receiver.answer = lambda _: Answer(401, body=b"who are you")
    with pytest.raises(McpStatus, match="401"):
        called(receiver)
    receiver.answer = lambda _: Answer(302, {"Location": "https://example.com/"})
    with pytest.raises(McpStatus, match="302"):
        called(receiver)
    receiver.answer = server(lambda call: as_json(call, result={"content": [], "pad": "x" * 9000}))
    with pytest.raises(AnswerTooLong):
        called(receiver, most_bytes=1000)


def test_the_deadline_is_one_for_the_whole_session(receiver: Receiver) -> None:
    now = iter([0.0, 1.0, 2.0, 99.0, 99.0, 99.0])
    receiver.answer = server(lambda call: as_json(call, result={}))
    with (
        pytest.raises(CallTimedOut),
        mcp_session(GuardedClient(OPEN), receiver.url("/mcp"), {}, LONG_S, lambda: next(now)) as session,
    ):
        session.list_tools(1000)


def test_a_list_is_read_page_by_page_and_not_for_ever(receiver: Receiver) -> None:
    def pages(call: Call) -> Answer:
        cursor = orjson.loads(call.body)["params"].get("cursor")
        return as_json(call, result={"tools": [{"name": cursor or "first"}]} | ({} if cursor else {"nextCursor": "b"}))

    receiver.answer = server(pages)
    with mcp_session(GuardedClient(OPEN), receiver.url("/mcp"), {}, LONG_S) as session:
        assert [tool["name"] for tool in session.list_tools(1000)] == ["first", "b"]
        receiver.answer = server(lambda call: as_json(call, result={"tools": [], "nextCursor": "again"}))
        with pytest.raises(McpRefused, match="20 pages"):
            session.list_tools(1000)
