"""All that the adapter of OpenAI's chat format reads from answers and writes into requests, value by value."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import EngineError, FinishReason, Grammar
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.upstream import (
    Piece,
    ServerInfo,
    ServerLoad,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRefused,
)
from tests.models.external.adapters.canned import DONE, PLAIN, REQUEST, STREAMED, Canned, use


@pytest.mark.parametrize(
    ("models", "window"),
    [
        ([{"id": "a", "max_model_len": 10}], 10),
        ([{"id": "a", "context_length": 11}], 11),
        ([{"id": "a", "context_window": 12, "max_model_len": "many"}], 12),
        ([{"id": "a"}], None),
        ([{"id": "a", "max_model_len": 10}, {"id": "b", "max_model_len": 20}], None),
    ],
)
def test_a_chat_server_says_the_window_of_its_only_model(
    server: Canned, models: list[dict[str, Any]], window: int | None
) -> None:
    server.said = {"/v1/models": {"data": models}}
    names = tuple(one["id"] for one in models)
    assert use(OpenaiChatUpstream(server.url), ("describe",)) == [ServerInfo(None, names, context_window=window)]


def test_a_chat_server_is_asked_now_and_then_whether_it_is_there(server: Canned) -> None:
    now = [0.0]
    server.said = {"/v1/models": {"data": [{"id": "a"}]}}
    upstream = OpenaiChatUpstream(server.url, ask_every_s=15.0, clock=lambda: now[0])

    async def watch() -> list[int]:
        counts = []
        try:
            await upstream.describe()
            for now[0] in (15.0, 16.0, 31.0, 32.0):
                assert await upstream.load() == ServerLoad(0, 0)
                counts.append(len(server.asked))
            server.said = {"/v1/models": {"data": [{"id": "b"}]}}
            now[0] = 60.0
            with pytest.raises(UpstreamLost, match="have changed"):
                await upstream.load()
            return counts
        finally:
            await upstream.close()

    assert asyncio.run(watch()) == [1, 2, 2, 3]


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ('{"type": "object"}', {"type": "json_object"}),
        (
            '{"type": "boolean"}',
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "boolean"}, "strict": True},
            },
        ),
    ],
)
def test_a_chat_server_gets_all_of_a_request(server: Canned, schema: str, form: dict[str, Any]) -> None:
    server.said = {CHAT: DONE}
    sampling = replace(REQUEST.sampling, seed=0, grammar=Grammar("json_schema", schema))
    use(
        OpenaiChatUpstream(server.url),
        ("generate", replace(REQUEST, sampling=sampling, messages={"messages": [], "tools": [1]})),
        ("generate", PLAIN),
    )
    assert [body for _, body in server.asked] == [
        {
            "messages": [],
            "tools": [1],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 8,
            "seed": 0,
            "presence_penalty": 0.25,
            "frequency_penalty": -0.5,
            "logit_bias": {"5": -1.5},
            "response_format": form,
            **STREAMED,
        },
        {"temperature": 0.0, "top_p": 1.0, "max_tokens": 8, **STREAMED},
    ]


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def call(index: int, **function: Any) -> dict[str, Any]:
    return {"index": index, "function": function}


USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 6},
}


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("events", "text", "last"),
    [
        (
            [delta(content="a"), {"choices": [], "usage": USAGE}, delta("max_tokens")],
            "a",
            Piece(
                finish=FinishReason.LENGTH,
                num_prompt_tokens=12,
                num_cached_tokens=5,
                num_output_tokens=34,
                num_reasoning_tokens=6,
            ),
        ),
        (
            [delta(content="a"), delta(), delta("eos", refusal="b")],
            "ab",
            Piece(finish=FinishReason.STOP, num_output_tokens=2),
        ),
        ([delta("length", content="a")], "a", Piece(finish=FinishReason.LENGTH, num_output_tokens=1)),
        (
            [delta(reasoning="r"), delta(tool_calls=[call(0, name="f")]), delta(reasoning="late"), delta("stop")],
            '<think>r</think><tool_call>\n{"name": "f", "arguments": ',
            Piece(text="{}}\n</tool_call>", finish=FinishReason.STOP, num_output_tokens=2),
        ),
        (
            [
                delta(reasoning_content="r"),
                delta(refusal="no"),
                delta(tool_calls=[call(0, name="f", arguments="{}")]),
                delta(tool_calls=[call(1, name="g"), {"id": "", **call(1, arguments="[]")}]),
                delta("stop", content="."),
            ],
            '<think>r</think>no<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><tool_call>\n'
            '{"name": "g", "arguments": []}\n</tool_call>.',
            Piece(finish=FinishReason.STOP, num_output_tokens=5),
        ),
    ],
)
def test_a_chat_servers_answer_is_text(server: Canned, events: list[Any], text: str, last: Piece) -> None:
    for end in (DONE, []):
        server.said = {CHAT: [*events, *end]}
        (pieces,) = use(OpenaiChatUpstream(server.url), ("generate", PLAIN))
        assert (text_of(pieces[:-1]), pieces[-1]) == (text, last)
    reasoning = "".join(piece.text[: piece.num_reasoning] for piece in pieces)
    assert reasoning == (text[: text.index("</think>") + 8] if "<think>" in text else "")


@pytest.mark.parametrize(
    ("events", "kind", "message"),
    [
        ([delta("error")], UpstreamFailed, "in the middle"),
        ([delta("abort")], UpstreamFailed, "in the middle"),
        ([delta("content_filter")], UpstreamRefused, "content filter"),
        (
            [{"error": {"message": "m", "code": 400}}],
            UpstreamRefused,
            ": m",
        ),
        (
            [{"error": {"message": "m", "code": "bad"}}],
            UpstreamFailed,
            "(HTTP 500): m",
        ),
        ([{"error": "m"}], UpstreamFailed, "(HTTP 500): m"),
        (
            [delta(tool_calls=[call(0, name="f")]), delta(tool_calls=[call(1, arguments="{}")])],
            UpstreamFailed,
            "several tool calls",
        ),
    ],
)
def test_a_chat_server_may_fail_in_its_answer(
    server: Canned, events: list[Any], kind: type[EngineError], message: str
) -> None:
    server.said = {CHAT: events}
    (error,) = use(OpenaiChatUpstream(server.url), ("generate", PLAIN))
    assert type(error) is kind
    assert message in str(error)


def test_only_a_refusal_of_the_limits_name_makes_a_second_request(server: Canned) -> None:
    upstream = OpenaiChatUpstream(server.url)
    server.said = {CHAT: (400, {"error": {"message": "'max_completion_tokens' is too large"}})}
    use(upstream, ("generate", PLAIN))
    assert len(server.asked) == 1
    server.said = {CHAT: (400, {"error": {"message": "use 'max_completion_tokens', not 'max_tokens'"}})}
    (refused,) = use(OpenaiChatUpstream(server.url), ("generate", PLAIN))
    assert type(refused) is UpstreamRefused
    assert [list(body)[-1] for _, body in server.asked[1:]] == ["max_tokens", "max_completion_tokens"]
