"""Messages as clients see them, whole and as events, field by field. No server."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.anthropic.message_answer import MessageAnswer, input_of
from headrace.features.anthropic.turns_message import TurnsMessageAnswer
from headrace.producer_api.server.errors import JobUnanswered
from headrace.producer_api.streaming.turns import CallEnded, TurnCall
from headrace.store.schema.job_states import FLOW_TASK, JobState
from tests.producer_api.answered_jobs import CALL, CALLS, THINKS, TURNS, ended, job_of
from tests.producer_api.expected_events import expected_events


def test_a_whole_message() -> None:
    job = replace(job_of("Hi.", {"truncated": {"messages": 1}}), class_rank=1)
    assert MessageAnswer(job).full_answer(job) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "tiny@1",
        "content": [{"type": "text", "text": "Hi."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "truncated": {"messages": 1},
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }


@pytest.mark.parametrize(
    ("finish_reason", "stop_text", "expected"),
    [
        ("stop", None, {"stop_reason": "end_turn", "stop_sequence": None}),
        ("stop", "END", {"stop_reason": "stop_sequence", "stop_sequence": "END"}),
        ("length", "END", {"stop_reason": "max_tokens", "stop_sequence": None}),
        ("tool_calls", None, {"stop_reason": "tool_use", "stop_sequence": None}),
    ],
)
def test_a_message_says_why_it_ended(finish_reason: str, stop_text: str | None, expected: dict[str, Any]) -> None:
    job = job_of("Hi.", None, finish_reason, stop_text=stop_text)
    found = MessageAnswer(job).full_answer(job)
    assert {name: found[name] for name in expected} == expected
    *_, last, _ = MessageAnswer(job).closing(job)
    assert last["delta"] == expected


def test_the_events_of_a_message() -> None:
    job = replace(job_of("Hi."), class_rank=2)
    answer = MessageAnswer(job)
    assert answer.opening() == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "tiny@1",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 3,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 2,
                    "output_tokens": 3,
                    "service_tier": "batch",
                },
            },
        }
    ]
    assert answer.pieces("Hi") == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    ]
    assert answer.pieces(".") == [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "."}}
    ]
    assert answer.closing(job) == [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {
                "input_tokens": 3,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 2,
                "output_tokens": 3,
            },
        },
        {"type": "message_stop"},
    ]


def test_blocks_of_thinking_text_and_tools() -> None:
    job = job_of("<t>hm</t>\nWell", THINKS)
    answer = MessageAnswer(job)
    assert [*answer.pieces("<t>h"), *answer.pieces("m</t>\nWell"), *answer.closing(job)[:1]] == [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "h"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "m"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig_1"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Well"}},
        {"type": "content_block_stop", "index": 1},
    ]
    assert MessageAnswer(job).full_answer(job)["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig_1"},
        {"type": "text", "text": "Well"},
    ]
    called = job_of(f"{CALL}\nSo.\n{CALL}", CALLS, "tool_calls")
    assert MessageAnswer(called).full_answer(called)["content"] == [
        {"type": "tool_use", "id": "toolu_e1b7ae25762ba392d148ff3f", "name": "f", "input": {"a": 1}},
        {"type": "text", "text": "So."},
        {"type": "tool_use", "id": "toolu_e8e48d2481d7a06e26ace89c", "name": "f", "input": {"a": 1}},
    ]
    cut = job_of('{"name": "f", "arguments": {"a": 1, "b": "x', CALLS, "length")
    assert MessageAnswer(cut).full_answer(cut)["content"] == [
        {"type": "tool_use", "id": "toolu_e1b7ae25762ba392d148ff3f", "name": "f", "input": {"a": 1}}
    ]


def test_the_input_of_a_use_is_as_much_as_is_complete() -> None:
    found = [input_of(text) for text in ('{"a": 1, "b": [2', "", "[1]", "x", '{"a": "b')]
    assert found == [{"a": 1, "b": [2]}, {}, {}, {}, {}]


def test_counts_of_a_job_that_has_none() -> None:
    job = ended("x", usage=None)
    assert MessageAnswer(job).full_answer(job)["usage"] == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
        "service_tier": "priority",
    }


def test_the_blocks_of_calls_of_the_server() -> None:
    expected = expected_events(__file__, "server_calls")
    job = replace(job_of("Warm.", TURNS), task=FLOW_TASK)
    answer = TurnsMessageAnswer(job)
    one, two = TurnCall(0, "call_0", "job_2", "s__find", "{}"), TurnCall(1, "call_1", "job_3", "f", '{"a": 1}')
    output = {"text": f"Hi\n{CALL}\n{CALL}", "tool_calls": [{}, {}]}
    assert answer.pieces(f"Hi\n{CALL}") == expected["first_pieces"]
    assert answer.turn_ended(output, [one, two]) == expected["turn_ended"]
    assert answer.call_ended(CallEnded(one, "22", False)) == expected["call_ended"]
    assert answer.call_ended(CallEnded(two, "no", True)) == expected["failed_call_ended"]
    assert answer.pieces("Warm.") == expected["last_pieces"]
    assert (
        answer.full_answer(replace(job, output={"text": "", "finish_reason": "stop"}))["content"] == expected["content"]
    )


def test_a_job_without_an_answer_has_no_message() -> None:
    job = ended("x", JobState.CANCELLED)
    for read in (MessageAnswer(job).full_answer, MessageAnswer(job).closing):
        with pytest.raises(JobUnanswered, match="was cancelled"):
            read(job)
