"""The jobs that requests of OpenAI's API become, whole. No server."""

from typing import Any

import pytest

from headrace.store.errors import InvalidRequest
from tests.features.openai.openai_requests import CALL, TOOL, chat_job, completion_job, embed_job, form
from tests.producer_api.request_outcomes import fields_set

PLAIN: dict[str, Any] = {
    "model": "m",
    "input": {"messages": [{"role": "user", "content": "hi"}]},
    "sampling": {},
    "service_class": "interactive",
    "truncation": "disabled",
    "metadata": {},
}
PARTS: list[Any] = [
    {"type": "text", "text": "a"},
    {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}},
    {"type": "text", "text": "b"},
    {"type": "file", "file": {"file_id": "file_1"}},
]
PARSED = {**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {}}}
EVERY_FIELD: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": PARTS, "reasoning_content": "not hers"},
        {"role": "assistant", "content": None, "tool_calls": [PARSED], "reasoning_content": "hm"},
        {"role": "tool", "content": "22", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "c", "refusal": "not hers"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "chat_template_kwargs": {"a": 1},
    "reasoning": {"effort": "low", "max_tokens": 9},
    "logprobs": True,
    "top_logprobs": 3,
    "n": 2,
    "best_of": 2,
    "max_tokens": 7,
    "max_completion_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": -1,
    "seed": 42,
    "stop": "END",
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
    "min_p": 0.1,
    "stop_token_ids": [10],
    "logit_bias": {"7": -100},
    "bad_words": ["x"],
    **form({"b": 1, "a": 2}),
    "metadata": {"k": "v", "n": 1, "is": True, "f": 0.5},
    "user": "ann",
    "safety_identifier": "mia",
    "truncation": "auto",
    "service_tier": "default",
    "job": {"priority": 2, "deadline_ms": 1000, "max_attempts": 1, "webhook": {"url": "https://h.example/x"}},
}
INPUT_OF_EVERY_FIELD = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": "ab",
            "name": "ann",
            "images": [
                {"url": "https://x.example/a.png", "detail": "low", "at": 1},
                {"file_id": "file_1", "at": 2},
            ],
        },
        {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "22", "tool_call_id": "c1"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "c"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "chat_template_kwargs": {"a": 1},
    "reasoning": {"effort": "low", "max_tokens": 9},
}


def test_every_field_of_a_chat_has_its_place_in_the_job() -> None:
    made = fields_set(chat_job(EVERY_FIELD))
    assert made.pop("input") == INPUT_OF_EVERY_FIELD
    assert made.pop("sampling") == {
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "seed": 42,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "min_p": 0.1,
        "stop_token_ids": [10],
        "logit_bias": {"7": -100.0},
        "bad_words": ["x"],
        "grammar": {"kind": "json_schema", "text": '{"b": 1, "a": 2}'},
        "logprobs": 3,
    }
    assert made == {
        "model": "m",
        "n": 2,
        "service_class": "standard",
        "truncation": "auto",
        "metadata": {"k": "v", "n": "1", "is": "true", "f": "0.5"},
        "user": "mia",
        "priority": 2,
        "deadline_ms": 1000,
        "max_attempts": 1,
        "webhook": {"url": "https://h.example/x"},
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": "priority"}, {}),
        ({"service_tier": "fast"}, {}),
        ({"random_seed": 7}, {"sampling": {"seed": 7}}),
        ({"service_tier": "flex", "user": "ann"}, {"service_class": "batch", "user": "ann"}),
        ({"best_of": 1, "user": "", "metadata": {}}, {}),
        ({"logprobs": True}, {"sampling": {"logprobs": 0}}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"ignore_eos": True, "stop": ["a", "b"]}, {"sampling": {"ignore_eos": True, "stop": ["a", "b"]}}),
        ({"min_tokens": 3, "max_tokens": 4}, {"sampling": {"min_tokens": 3, "max_tokens": 4}}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_object"}},
            {"sampling": {"grammar": {"kind": "json_schema", "text": '{"type": "object"}'}}},
        ),
        (form(True), {"sampling": {"grammar": {"kind": "json_schema", "text": "true"}}}),
        (
            {"structured_outputs": {"choice": ["ä", "b"]}, "response_format": {"type": "text"}},
            {"sampling": {"grammar": {"kind": "choice", "text": '["ä", "b"]'}}},
        ),
        (
            {"structured_outputs": {"json": '{"a":  1}'}},
            {"sampling": {"grammar": {"kind": "json_schema", "text": '{"a":  1}'}}},
        ),
        ({"guided_grammar": "x"}, {"sampling": {"grammar": {"kind": "lark", "text": "x"}}}),
        (
            {"guided_regex": "a+", "structured_outputs": {"regex": "a+"}, "guided_json": None},
            {"sampling": {"grammar": {"kind": "regex", "text": "a+"}}},
        ),
        ({"prompt": {"id": "hi"}, "messages": None}, {"input": {"template": {"id": "hi"}}}),
        ({"reasoning": {"summary": "auto", "generate_summary": "detailed", "exclude": False}}, {}),
        ({"enable_thinking": True, "reasoning": {"enabled": True}}, {"input": PLAIN["input"] | {"reasoning": {}}}),
        ({"functions": [], "function_call": "auto", "modalities": ["text"], "system": ""}, {}),
        ({f"unknown {number}": 1 for number in range(32)} | {"temperatures" * 4: 1}, None),
    ],
)
def test_a_chat_becomes_this_job(changes: dict[str, Any], expected: dict[str, Any] | None) -> None:
    if expected is None:
        with pytest.raises(InvalidRequest, match=r"33 .* 32 "):
            chat_job(changes)
        changes.popitem()
    assert fields_set(chat_job(changes)) == PLAIN | (expected or {})


def test_passages_and_tools_of_the_server_are_in_the_job() -> None:
    made = chat_job({"retrieval": {"vector_store_ids": ["vs_1"]}})
    assert (made.retrieval.vector_store_ids, made.server_tools) == (("vs_1",), None)
    made = chat_job({"server_tools": {"names": ["calculator"]}, "logprobs": True, "stream": False})
    assert (made.retrieval, made.server_tools.names) == (None, ("calculator",))
    assert made.sampling.logprobs == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": "a", "suffix": ""}, {"input": {"prompt": "a"}}),
        ({"prompt": "a", "suffix": "z"}, {"input": {"prompt": "a", "suffix": "z"}}),
        ({"prompt": ["a"]}, {"input": {"prompt": "a"}}),
        ({"prompt": ["a", "b"], "n": 2, "best_of": 2}, {"input": {"prompts": ["a", "b"]}, "n": 2}),
        ({"prompt": [5]}, {"input": {"token_ids": [5]}}),
        ({"prompt": [[5, 6]]}, {"input": {"token_ids": [5, 6]}}),
        ({"prompt": [[5], [6]]}, {"input": {"prompts": [[5], [6]]}}),
        ({"prompt": {"id": "x"}}, {"input": {"template": {"id": "x"}}}),
        ({"max_tokens": None}, {"sampling": {}}),
        ({"max_tokens": 0, "echo": True}, {"sampling": {"max_tokens": 0, "echo": True}}),
        ({"logprobs": 0, "top_k": 5, "echo": False}, {"sampling": {"max_tokens": 16, "logprobs": 0, "top_k": 5}}),
    ],
)
def test_a_completion_becomes_this_job(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = PLAIN | {"input": {"prompt": "hi"}, "sampling": {"max_tokens": 16}}
    assert fields_set(completion_job(changes)) == plain | expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"input": ["a", "b"], "truncation": "auto"}, {"input": {"texts": ["a", "b"]}, "truncate": True}),
        ({"truncate": "end"}, {"truncate": True}),
        ({"truncate": "END"}, {"truncate": True}),
        ({"truncate": True}, {"truncate": True}),
        ({"truncate": "NONE", "truncation": "disabled"}, {}),
        ({"input": [1, 2], "own_token_ids": True}, {"input": {"token_ids": [[1, 2]]}}),
        ({"input": [[1, 2], [3]], "own_token_ids": True}, {"input": {"token_ids": [[1, 2], [3]]}}),
        (
            {"input": [{"image": "https://x.example/a.png"}, {"image": "https://x.example/b.png"}]},
            {"input": {"images": [{"url": "https://x.example/a.png"}, {"url": "https://x.example/b.png"}]}},
        ),
        (
            {"dimensions": 8, "prompt_name": "query", "user": "ann", "safety_identifier": "mia", "metadata": {"a": 1}},
            {"dimensions": 8, "prompt_name": "query", "user": "mia", "metadata": {"a": "1"}},
        ),
        ({"service_tier": "flex", "job": {"priority": 1}}, {"service_class": "batch", "priority": 1}),
        ({"user": "ann", "messages": []}, {"user": "ann"}),
    ],
)
def test_embeddings_become_this_job(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = {"task": "embed", "model": "m", "input": {"texts": ["hi"]}, "truncate": False}
    assert fields_set(embed_job(changes)) == plain | {"service_class": "interactive", "metadata": {}} | expected
