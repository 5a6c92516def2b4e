"""The errors, pauses and bounds of a server's answers, as its client reads them."""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace.models.engine.requests import EngineError
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.server_client import ServerClient
from headrace.models.external.sglang import SglangUpstream
from headrace.models.external.upstream import (
    ServerInfo,
    Upstream,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRefused,
)
from headrace.models.external.vllm import VllmUpstream
from tests.models.external.adapters.canned import CARDS, DONE, PLAIN, Canned, use
from tests.refusals import Naming


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ({"message": "x", "type": "EngineDeadError", "code": 500}, UpstreamLost, "died: x"),
        ({"message": "x"}, UpstreamFailed, "(HTTP 500): x"),
        ({"message": "x", "code": 400}, UpstreamRefused, ": x"),
        ({"message": "x", "code": 503}, UpstreamBusy, "(HTTP 503): x"),
    ],
)
def test_an_error_in_a_stream_has_its_reason(
    server: Canned, error: dict[str, Any], kind: type[EngineError], message: str
) -> None:
    server.said = {"/inference/v1/generate": [{"error": error}, *DONE], "/generate": [{"error": error}]}
    (found,) = use(VllmUpstream(server.url), ("generate", PLAIN))
    assert type(found) is kind
    assert str(found).endswith(message)
    if kind is not UpstreamLost:
        (found,) = use(SglangUpstream(server.url), ("generate", PLAIN))
        assert type(found) is kind
        assert str(found).endswith(message)


LONG = "y" * 400


@pytest.mark.parametrize(
    ("status", "said", "kind", "message", "code"),
    [
        (408, {"error": {"message": "m"}}, UpstreamBusy, "(HTTP 408): m", "worker_lost"),
        (401, {"error": {"message": "m"}}, UpstreamBusy, "(HTTP 401): m", "worker_lost"),
        (403, {"error": "m"}, UpstreamBusy, "(HTTP 403): m", "worker_lost"),
        (404, {"error": {"message": "m"}}, UpstreamRefused, ": m", "invalid_value"),
        (502, {"error": {"message": "m"}}, UpstreamBusy, "(HTTP 502): m", "worker_lost"),
        (504, "gateway\nline", UpstreamBusy, "(HTTP 504): gateway", "worker_lost"),
        (501, {"message": "m"}, UpstreamFailed, "(HTTP 501): m", "engine_error"),
        (422, {"detail": "d"}, UpstreamRefused, ": d", "invalid_value"),
        (400, {"error": {"message": LONG}}, UpstreamRefused, f": {LONG[:300]}", "invalid_value"),
        (
            400,
            {"error": {"message": 'bad, "input": [1]'}},
            UpstreamRefused,
            ": bad,",
            "invalid_value",
        ),
        (
            400,
            {"error": {"message": "bad data:image/png;base64,AAAA"}},
            UpstreamRefused,
            ": bad data:image/png",
            "invalid_value",
        ),
        (
            400,
            {"error": {"message": "bad input_value=7"}},
            UpstreamRefused,
            ": bad",
            "invalid_value",
        ),
        (
            413,
            {"error": {"message": "m", "type": "exceed_context_size_error"}},
            UpstreamRefused,
            ": m",
            "context_length_exceeded",
        ),
        (
            500,
            {"error": {"message": "m", "code": "context_length_exceeded"}},
            UpstreamFailed,
            "(HTTP 500): m",
            "engine_error",
        ),
    ],
)
def test_the_status_and_the_message_of_a_refusal_make_the_error(
    server: Canned, status: int, said: Any, kind: type[EngineError], message: str, code: str
) -> None:
    server.said = {"/x": (status, said)}
    (error,) = use(ServerClient(server.url), ("get", "/x"))
    assert (type(error), error.code) == (kind, code)
    assert str(error).endswith(message)


@pytest.mark.parametrize(
    ("status", "after", "pause_s"),
    [(429, "2.5", 2.5), (503, "1000", 300.0), (503, None, 1.0), (429, "soon", 1.0), (429, "-5", 0.0), (502, "9", 0.0)],
)
def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    server: Canned, status: int, after: str | None, pause_s: float
) -> None:
    now = [50.0]
    server.said = {"/x": (status, {})}
    server.headers = {} if after is None else {"retry-after": after}
    client = ServerClient(server.url, clock=lambda: now[0])
    use(client, ("get", "/x"))
    now[0] = 50.0 + 0.9 * pause_s
    assert client.is_paused == (pause_s > 0)
    now[0] = 50.0 + pause_s
    assert not client.is_paused


def test_an_answer_is_bounded_and_its_last_line_counts(server: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.models.external.server_client.MAX_ANSWER_BYTES", 10)
    server.said = {
        "/ten": "0123456789",
        "/more": "0123456789x",
        "/none": "[]",
        "/events": 'data: {"a": 1}\nother: 2\ndata:b',
    }

    async def read() -> tuple[bytes, str, Any, list[bytes]]:
        client = ServerClient(server.url, "key")
        try:
            with pytest.raises(UpstreamLost) as lost:
                await client.get("/more")
            events = [data async for data in client.stream("/events", {"b": 2})]
            return await client.get("/ten"), str(lost.value), await client.get_json("/none"), events
        finally:
            await client.close()

    assert asyncio.run(read()) == (
        b"0123456789",
        Naming("10 bytes"),
        [],
        [b'{"a": 1}', b"b"],
    )
    assert json.dumps(server.asked[1]) == '["/events", {"b": 2}]'


@pytest.mark.parametrize(
    ("upstream", "path"),
    [
        (lambda url: VllmUpstream(url, is_router=True), "/v1/completions"),
        (OpenaiChatUpstream, "/v1/chat/completions"),
    ],
)
def test_a_router_that_asks_a_lost_server_for_its_models_is_used_while_another_server_works(
    server: Canned, upstream: Callable[[str], Upstream], path: str
) -> None:
    lost = (500, "Request failed: error sending request for url (http://10.0.0.1/)")
    asked = itertools.count(1)

    def models(_: object) -> object:
        number = next(asked)
        if number == 3:
            server.said[path] = lost
        return {"data": CARDS} if number == 1 else lost

    server.said = {"/v1/models": models, path: DONE}
    before, one_lost, all_lost = use(upstream(server.url), ("describe",), ("describe",), ("describe",))
    assert isinstance(before, ServerInfo)
    assert one_lost == before
    assert isinstance(all_lost, UpstreamLost)
