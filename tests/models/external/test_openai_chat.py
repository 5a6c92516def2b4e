"""What is the chat completions adapter's own: fields, counts, tool calls, busy servers and errors."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import (
    UNKNOWN_TOKEN,
    CheckpointMismatch,
    CompletionOutput,
    EngineError,
    FinishReason,
)
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.server_probes import why_not_continued
from headrace.models.external.upstream import UpstreamFailed, UpstreamLost, UpstreamRefused
from headrace.prompts.tool_calls import ToolCallReader
from headrace.store.tasks.generate import ToolStyle
from tests.models.external.engines import Rig, chat, continued, wait_until
from tests.models.external.fake_model import answer
from tests.refusals import Naming


@pytest.fixture
def chat_rig() -> Iterator[Rig]:
    with chat() as chat_rig:
        yield chat_rig


def ask(chat_rig: Rig, **sampling: Any) -> CompletionOutput:
    return chat_rig.run(chat_rig.ask(**sampling))


def test_the_servers_counts_are_the_usage_and_pieces_count_where_it_has_none(chat_rig: Rig) -> None:
    bare = ask(chat_rig, max_tokens=5, ignore_eos=True)
    assert (bare.num_prompt_tokens, bare.num_output_tokens) == (len(chat_rig.words[0]), 5)
    chat_rig.server.writes_usage = True
    counted = ask(chat_rig)
    assert (counted.num_prompt_tokens, counted.num_output_tokens, counted.num_cached_tokens) == (1234, 567, 8)


def test_a_request_has_the_fields_of_a_chat_and_no_others(chat_rig: Rig) -> None:
    chat_rig.run(chat_rig.ask(max_tokens=7, temperature=0.5, top_p=0.9, seed=3, presence_penalty=0.5, stop=("xyz",)))
    body = chat_rig.server.calls[-1].body
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the mill"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "presence_penalty": 0.5,
    }


def test_a_server_that_wants_the_new_name_of_the_limit_gets_it_from_then_on(chat_rig: Rig) -> None:
    chat_rig.server.wants_new_limit = True
    for _ in range(2):
        assert ask(chat_rig, max_tokens=4, ignore_eos=True).text == bytes(answer(b"on and on: the mill", 4)).decode()
    assert [call.body.get("max_completion_tokens") for call in chat_rig.server.calls] == [4, 4]


def test_priorities_are_left_out_once_the_server_has_refused_one() -> None:
    with chat(continues=True) as rig:
        rig.server.by_priority = False
        for number in range(2):
            assert rig.run(replace(rig.ask(), id=f"job-{number}", class_rank=2)).text
        assert [call.body.get("priority") for call in rig.server.calls] == [None, None]


def test_an_answer_goes_on_as_the_last_message_with_as_many_tokens_fewer() -> None:
    with chat(continues=True) as rig:
        whole = rig.run(rig.ask(ignore_eos=True))
        for num_begun in range(1, 40):
            first = rig.run(rig.ask(max_tokens=num_begun, ignore_eos=True))
            if first.text.endswith("  "):
                continue  # two tokens here; a real tokenizer has one for them
            second = rig.run(continued(rig.ask(ignore_eos=True), first))
            assert (second.text, second.num_output_tokens) == (whole.text, 40), "also after white space"
            assert second.num_prompt_tokens == whole.num_prompt_tokens
        sent = rig.server.calls[-1].body
        assert sent["messages"][-1] == {"role": "assistant", "content": first.text.rstrip()}
        assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


def test_a_server_that_ignores_the_field_does_not_go_on() -> None:
    for continues in (True, False):
        with chat(continues=continues) as rig:
            rig.server.writes_usage = not continues
            upstream = OpenaiChatUpstream(rig.server.url, continues=True)

            async def ask(asked: OpenaiChatUpstream = upstream) -> str | None:
                try:
                    return await why_not_continued(asked, "tiny")
                finally:
                    await asked.close()

            found = asyncio.run(ask())
        assert found == (None if continues else Naming("--continues", "1234"))


BEGUN: dict[str, tuple[str, dict[str, Any]]] = {
    "reasoning": ("<think>9 or", {}),
    "a tool call": ("<tool_call>\n{", {}),
    "an answer before it": ("nine", {"messages": [{"role": "assistant", "content": "on and on: "}]}),
}


@pytest.mark.parametrize("state", BEGUN)
def test_what_a_last_message_cannot_say_starts_anew(state: str) -> None:
    text, messages = BEGUN[state]
    with chat(continues=True) as rig:
        request = replace(rig.ask(), emitted=(UNKNOWN_TOKEN,), emitted_deltas=(text,))
        with pytest.raises(CheckpointMismatch):
            rig.engine.check(replace(request, messages=messages or request.messages))


def test_a_server_that_refuses_to_go_on_is_asked_anew() -> None:
    with chat(continues=True) as rig:
        again = continued(rig.ask(), rig.run(rig.ask(max_tokens=5, ignore_eos=True)))
        rig.server.refusals = [(400, {}, {"error": {"message": "the template refuses it"}})]
        with pytest.raises(UpstreamLost, match="the template"):
            rig.run(again)
        with pytest.raises(CheckpointMismatch):
            rig.engine.check(again)


PIECES = [
    {"content": "Let me see. "},
    {"reasoning_content": "which city?"},
    {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "K'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": 'öln"}'}}]},
    {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "now"}}]},
    {},
]
WHOLE = [
    {"content": "Let me see. "},
    {
        "tool_calls": [
            {"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
            {"index": 0, "id": "b", "function": {"name": "now", "arguments": "{}"}},
        ]
    },
    {},
]


@pytest.mark.parametrize("script", [PIECES, WHOLE], ids=["in pieces", "whole, without numbers"])
def test_tool_calls_of_the_server_are_read_in_the_text(chat_rig: Rig, script: list[dict[str, Any]]) -> None:
    chat_rig.server.script = script
    completion = ask(chat_rig)
    reader = ToolCallReader(ToolStyle.HERMES, ["weather", "now"])
    pieces = [piece for text in completion.deltas for piece in reader.add(text)] + reader.finish()
    calls: dict[int, list[str]] = {}
    for piece in pieces[1:]:
        calls.setdefault(piece.index, [piece.name or "", ""])[1] += piece.arguments
    assert pieces[0].text == "Let me see."
    assert calls == {0: ["weather", '{"city": "Köln"}'], 1: ["now", "{}"]}
    assert completion.finish_reason is FinishReason.STOP
    assert "which city" not in completion.text


def test_the_server_s_reasoning_stands_before_the_answer_between_marks(chat_rig: Rig) -> None:
    chat_rig.server.script = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "9 or"},
        {"reasoning": " 8?"},
        {"content": "It is "},
        {"content": "9, I think"},
        {},
    ]
    assert ask(chat_rig).text == "<think>9 or 8?</think>It is 9, I think"
    stopped = ask(chat_rig, stop=("9",))
    assert (stopped.text, stopped.stop_text) == ("<think>9 or 8?</think>It is ", "9")


def test_a_busy_server_gets_nothing_for_as_long_as_it_says(chat_rig: Rig) -> None:
    chat_rig.server.refusals = [(429, {"retry-after": "1.5"}, {"error": {"message": "slow down"}})]
    began = time.monotonic()
    with pytest.raises(UpstreamLost, match="slow down"):
        ask(chat_rig)
    wait_until(lambda: not chat_rig.engine.can_admit(1, 1) or time.monotonic() >= began + 1.5)
    wait_until(lambda: chat_rig.engine.can_admit(1, 1))
    assert time.monotonic() >= began + 1.5
    assert ask(chat_rig).text


ERRORS: list[tuple[int, Any, type[EngineError], str]] = [
    (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, UpstreamRefused, "context_length"),
    (400, {"error": {"message": "too long", "type": "exceed_context_size_error"}}, UpstreamRefused, "context_length"),
    (422, {"detail": [{"loc": ["body"], "msg": "bad", "input": "the mill"}]}, UpstreamRefused, "invalid_value"),
    (401, {"error": {"message": "wrong key"}}, UpstreamLost, "worker_lost"),
    (500, {"error": {"message": "out of luck"}}, UpstreamFailed, "engine_error"),
    (500, "Request failed: error sending request for url (http://10.0.0.1/)", UpstreamLost, "worker_lost"),
]


@pytest.mark.parametrize(("status", "said", "kind", "code"), ERRORS)
def test_an_error_says_if_another_attempt_may_succeed(
    chat_rig: Rig, status: int, said: Any, kind: type[EngineError], code: str
) -> None:
    chat_rig.server.refusals = [(status, {}, said)]
    with pytest.raises(kind) as refused:
        ask(chat_rig)
    assert refused.value.code.startswith(code)
    assert "the mill" not in str(refused.value), "the prompt is not quoted"


def test_an_answer_that_a_content_filter_cuts_is_no_answer(chat_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.models.external.fake_chat.SCRIPT_FINISH", "content_filter")
    chat_rig.server.script = [{"content": "I"}, {}]
    with pytest.raises(UpstreamRefused, match="content filter"):
        ask(chat_rig)
