"""Completions as clients see them, chats and texts, whole and streamed, field by field. No server."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.openai.chat_answer import ChatAnswer, answer_to
from headrace.features.openai.completion_answer import CompletionAnswer
from headrace.features.openai.text_routes import STREAM_FORMAT
from headrace.features.openai.turns_answer import TurnsChatAnswer
from headrace.producer_api.server.errors import JobUnanswered
from headrace.producer_api.streaming.answers import Answer, answer_of
from headrace.producer_api.streaming.turns import CallEnded, TurnCall
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import FLOW_TASK, JobState
from tests.producer_api.answered_jobs import ASKED, CALL, CALLS, THINKS, TURNS, USAGE, ended, entry, job_of
from tests.refusals import Naming

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1795564800, "model": "tiny@1"}
COMPLETION = {"id": "cmpl-1", "object": "text_completion", "created": 1795564800, "model": "tiny@1"}
TOKEN_COUNTS = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def choices_of(chunks: Any) -> list[Any]:
    """The choices of the chunks, the token counts of those without."""
    return [chunk["choices"] or chunk["usage"] for chunk in chunks]


def choice(
    delta: dict[str, Any], finish_reason: str | None = None, *, index: int = 0, logprobs: Any = None
) -> dict[str, Any]:
    """The choice of a chunk."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def streamed(answer: Answer, job: Job, *pieces: str) -> list[Any]:
    return choices_of(
        [*answer.opening(), *(one for piece in pieces for one in answer.pieces(piece)), *answer.closing(job)]
    )


def test_a_whole_chat_completion() -> None:
    job = job_of("Hi.", {"truncated": {"messages": 1}, "template": {"id": "p"}}, logprobs=[entry("Hi.")])
    assert ChatAnswer(job, shared={"service_tier": "flex"}).full_answer(job) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1795564800,
        "model": "tiny@1",
        "truncated": {"messages": 1},
        "template": {"id": "p"},
        "service_tier": "flex",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi.", "refusal": None},
                "logprobs": {
                    "content": [{"token": "Hi.", "logprob": -0.5, "bytes": [72, 105, 46], "top_logprobs": []}],
                    "refusal": None,
                },
                "finish_reason": "stop",
            }
        ],
        "usage": TOKEN_COUNTS,
    }


def test_what_a_whole_message_has_beside_its_text() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    job = job_of("raw", None, "tool_calls", tool_calls=calls, reasoning="hm", annotations=[{"type": "file_citation"}])
    assert ChatAnswer(job).full_answer(job)["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "reasoning_content": "hm",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                "annotations": [{"type": "file_citation"}],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ]
    job = job_of("raw", content="said", tool_calls=calls)
    assert ChatAnswer(job).full_answer(job)["choices"][0]["message"]["content"] == "said"


def test_usage_of_a_job_without_counts() -> None:
    job = ended("x", usage=None)
    assert ChatAnswer(job).full_answer(job)["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 0,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_a_streamed_chat() -> None:
    job = job_of("Hello")
    answer = ChatAnswer(job, shared={"system_fingerprint": "fp"})
    assert answer.pieces("Hel", [entry("Hel")]) == [
        {
            **CHUNK,
            "system_fingerprint": "fp",
            "choices": [
                choice(
                    {"role": "assistant", "content": "Hel"},
                    logprobs={
                        "content": [{"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108], "top_logprobs": []}],
                        "refusal": None,
                    },
                )
            ],
        }
    ]
    assert choices_of(answer.pieces("lo")) == [[choice({"content": "lo"})]]
    assert choices_of(answer.closing(job)) == [[choice({}, "stop")]]


def test_a_streamed_chat_with_the_token_counts() -> None:
    job = job_of("", annotations=[{"type": "file_citation"}])
    assert ChatAnswer(job, with_usage=True).closing(job) == [
        {
            **CHUNK,
            "choices": [
                choice({"role": "assistant", "content": "", "annotations": [{"type": "file_citation"}]}, "stop")
            ],
            "usage": None,
        },
        {**CHUNK, "choices": [], "usage": TOKEN_COUNTS},
    ]


def test_a_streamed_chat_with_calls() -> None:
    job = job_of(f"Hi\n{CALL}\n{CALL}", CALLS, "tool_calls")
    assert streamed(ChatAnswer(job), job, "Hi", f"\n{CALL}", f"\n{CALL}") == [
        [choice({"role": "assistant", "content": "Hi"})],
        [
            choice(
                {
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "call_e1b7ae25762ba392d148ff3f",
                            "type": "function",
                            "function": {"name": "f", "arguments": ""},
                        }
                    ]
                }
            )
        ],
        [choice({"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]})],
        [
            choice(
                {
                    "tool_calls": [
                        {
                            "index": 1,
                            "id": "call_e8e48d2481d7a06e26ace89c",
                            "type": "function",
                            "function": {"name": "f", "arguments": ""},
                        }
                    ]
                }
            )
        ],
        [choice({"tool_calls": [{"index": 1, "function": {"arguments": '{"a": 1}'}}]})],
        [choice({}, "tool_calls")],
    ]


def test_a_streamed_chat_with_reasoning_and_logprobs() -> None:
    job = job_of("<t>hm</t>Well", THINKS)
    answer = ChatAnswer(job)
    told = [entry(one) for one in ("<t>", "hm", "</t>", "We", "ll")]
    assert choices_of(answer.pieces("<t>hm", told[:2])) == [[choice({"role": "assistant", "reasoning_content": "hm"})]]
    assert choices_of(answer.pieces("</t>We", told[2:4])) == [
        [
            choice(
                {"content": "We"},
                logprobs={
                    "content": [{"token": "We", "logprob": -0.5, "bytes": [87, 101], "top_logprobs": []}],
                    "refusal": None,
                },
            )
        ]
    ]
    assert choices_of(answer.pieces("ll", told[4:])) == [
        [
            choice(
                {"content": "ll"},
                logprobs={
                    "content": [{"token": "ll", "logprob": -0.5, "bytes": [108, 108], "top_logprobs": []}],
                    "refusal": None,
                },
            )
        ]
    ]
    assert choices_of(answer.closing(job)) == [[choice({}, "stop")]]


def test_logprobs_of_a_whole_answer_are_those_behind_the_reasoning() -> None:
    told = [entry(one) for one in ("<t>", "hm", "</t>", "We", "ll")]
    job = job_of("<t>hm</t>Well", THINKS, logprobs=told)
    assert ChatAnswer(job).full_answer(job)["choices"][0]["logprobs"] == {"content": told[3:], "refusal": None}


def test_several_answers_have_their_numbers() -> None:
    outputs = [{"text": text, "finish_reason": reason} for text, reason in (("a", "stop"), ("b", "length"))]
    payload = {"n": 2, "input": {"messages": ASKED["input"]["messages"]}, "sampling": {}}
    job = ended("", payload=payload, output={"choices": outputs}, usage=USAGE)
    assert answer_to(job, ChatAnswer).full_answer(job) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1795564800,
        "model": "tiny@1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "b", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            },
        ],
        "usage": TOKEN_COUNTS,
    }
    answer: Any = answer_to(job, lambda job, number: ChatAnswer(job, number, with_usage=True))
    assert choices_of(answer.pieces_of(1, "b", ())) == [[choice({"role": "assistant", "content": "b"}, index=1)]]
    assert choices_of(answer.closing(job)) == [
        [choice({"role": "assistant", "content": ""}, "stop")],
        [choice({}, "length", index=1)],
        TOKEN_COUNTS,
    ]


def test_a_chat_whose_calls_the_server_makes() -> None:
    job = replace(job_of("Warm.", TURNS), task=FLOW_TASK)
    answer = TurnsChatAnswer(job, with_usage=True)
    one, two = TurnCall(0, "call_0", "job_2", "f", "{}"), TurnCall(1, "call_1", "job_3", "f", '{"a": 1}')
    output = {"text": f"Hi\n{CALL}\n{CALL}", "tool_calls": [{}, {}]}
    assert choices_of(answer.pieces(f"Hi\n{CALL}")) == [[choice({"role": "assistant", "content": "Hi"})]]
    assert choices_of(answer.turn_ended(output, [one, two])) == [
        [
            choice(
                {
                    "server_tool_calls": [
                        {
                            "index": 0,
                            "id": "call_0",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                            "job_id": "job_2",
                        },
                        {
                            "index": 1,
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"a": 1}'},
                            "job_id": "job_3",
                        },
                    ]
                }
            )
        ]
    ]
    assert choices_of(
        [*answer.call_ended(CallEnded(one, "22", False)), *answer.call_ended(CallEnded(two, "no", True))]
    ) == [
        [choice({"server_tool_calls": [{"index": 0, "status": "completed", "output": "22"}]})],
        [choice({"server_tool_calls": [{"index": 1, "status": "failed", "output": "no"}]})],
    ]
    answer.turn_ended({"text": CALL, "tool_calls": []}, [])
    assert choices_of([*answer.pieces("Wa"), *answer.pieces("rm."), *answer.closing(job)]) == [
        [choice({"content": "\nWa"})],
        [choice({"content": "rm."})],
        [choice({}, "stop")],
        TOKEN_COUNTS,
    ]


def test_a_whole_text_completion() -> None:
    told = [entry("wä", -0.5, entry("b", -1.0)), {**entry("x"), "bytes": [0xE2]}, {**entry("y"), "bytes": [0x82, 0xAC]}]
    job = job_of("wä€", {"template": {"id": "p"}}, logprobs=told)
    assert CompletionAnswer(job, shared={"system_fingerprint": "fp"}).full_answer(job) == {
        **COMPLETION,
        "template": {"id": "p"},
        "system_fingerprint": "fp",
        "choices": [
            {
                "index": 0,
                "text": "wä€",
                "logprobs": {
                    "tokens": ["wä", "bytes:\\xe2", "bytes:\\x82\\xac"],
                    "token_logprobs": [-0.5, -0.5, -0.5],
                    "top_logprobs": [{"b": -1.0, "wä": -0.5}, {"bytes:\\xe2": -0.5}, {"bytes:\\x82\\xac": -0.5}],
                    "text_offset": [0, 2, 2],
                },
                "finish_reason": "stop",
            }
        ],
        "usage": TOKEN_COUNTS,
    }


def test_a_completion_with_its_prompt() -> None:
    prompt = {"text": "Go ", "tokens": [entry("Go ", None)]}
    job = job_of("on", prompt=prompt, logprobs=[entry("on")])
    assert CompletionAnswer(job).full_answer(job)["choices"] == [
        {
            "index": 0,
            "text": "Go on",
            "logprobs": {
                "tokens": ["Go ", "on"],
                "token_logprobs": [None, -0.5],
                "top_logprobs": [None, {"on": -0.5}],
                "text_offset": [0, 3],
            },
            "finish_reason": "stop",
        }
    ]
    job = job_of("on", prompt=prompt)
    assert CompletionAnswer(job).full_answer(job)["choices"][0]["logprobs"]["tokens"] == ["Go "]
    job = job_of("on", prompt={"text": "Go "})
    assert CompletionAnswer(job).full_answer(job)["choices"] == [
        {"index": 0, "text": "Go on", "logprobs": None, "finish_reason": "stop"}
    ]


def test_a_streamed_completion() -> None:
    job = job_of("wow", None, "length")
    answer = CompletionAnswer(job, with_usage=True)
    assert answer.pieces("w", [entry("w")]) == [
        {
            **COMPLETION,
            "choices": [
                {
                    "index": 0,
                    "text": "w",
                    "logprobs": {
                        "tokens": ["w"],
                        "token_logprobs": [-0.5],
                        "top_logprobs": [{"w": -0.5}],
                        "text_offset": [0],
                    },
                    "finish_reason": None,
                }
            ],
            "usage": None,
        }
    ]
    assert choices_of(answer.pieces("ow", [entry("ow")])) == [
        [
            {
                "index": 0,
                "text": "ow",
                "logprobs": {
                    "tokens": ["ow"],
                    "token_logprobs": [-0.5],
                    "top_logprobs": [{"ow": -0.5}],
                    "text_offset": [1],
                },
                "finish_reason": None,
            }
        ]
    ]
    assert answer.closing(job) == [
        {
            **COMPLETION,
            "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
            "usage": None,
        },
        {**COMPLETION, "choices": [], "usage": TOKEN_COUNTS},
    ]
    assert choices_of(CompletionAnswer(job).pieces("w")) == [
        [{"index": 0, "text": "w", "logprobs": None, "finish_reason": None}]
    ]
    assert CompletionAnswer(job).closing(job) == [
        {**COMPLETION, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]}
    ]


@pytest.mark.parametrize(
    ("state", "error", "code", "message"),
    [
        (JobState.CANCELLED, None, "cancelled", "cancelled"),
        (JobState.EXPIRED, None, "deadline_exceeded", "expired"),
        (JobState.FAILED, None, "internal_error", "failed"),
        (
            JobState.FAILED,
            {"code": "out_of_memory", "message": "no memory"},
            "out_of_memory",
            "no memory",
        ),
        (JobState.SUCCEEDED, None, "internal_error", "succeeded"),
    ],
)
def test_a_job_without_an_answer(state: JobState, error: Any, code: str, message: str) -> None:
    job = ended("x", state, error=error, **({"output": None} if state is JobState.SUCCEEDED else {}))
    for read in (answer_of, ChatAnswer(job).full_answer, CompletionAnswer(job).closing):
        with pytest.raises(JobUnanswered) as raised:
            read(job)
        assert (raised.value.code, raised.value.message, raised.value.job_id) == (
            code,
            Naming("job_1", message),
            "job_1",
        )


def test_a_stream_ends_with_done_and_an_error_is_a_chunk() -> None:
    assert (STREAM_FORMAT.chunk({"a": 1}), STREAM_FORMAT.end) == (b'data: {"a":1}\n\n', b"data: [DONE]\n\n")
    error = JobUnanswered("no memory", code="out_of_memory", job_id="job_1")
    assert STREAM_FORMAT.error(error).startswith(b'data: {"error":{"message":"no memory","type":"server_error"')
