"""The jobs that requests of OpenAI's API become, whole, and what is said of those that become none. No server."""

from typing import Any

import pytest

from producer_api.openai import chat_request, completion_request, embedding_request
from producer_api.openai.chat_request import ChatRequest
from producer_api.openai.completion_request import CompletionRequest
from producer_api.openai.embedding_request import EmbeddingRequest
from store.errors import InvalidRequest
from store.payloads.strict_model import Strict

Refused = list[tuple[dict[str, Any], str, str | None, str]]

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"model": "m", "prompt": "hi"}
TEXT: dict[str, Any] = {"model": "m", "input": "hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL: dict[str, Any] = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"} | fields]}


def form(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


def chat_job(changes: dict[str, Any]) -> Any:
    return chat_request.to_job(ChatRequest.model_validate(CHAT | changes))


def completion_job(changes: dict[str, Any]) -> Any:
    return completion_request.to_job(CompletionRequest.model_validate(PROMPT | changes))


def embed_job(changes: dict[str, Any]) -> Any:
    return embedding_request.to_job(EmbeddingRequest.model_validate(TEXT | changes))


def given(job: Strict) -> dict[str, Any]:
    """The fields that the request has set."""
    return job.model_dump(mode="json", exclude_unset=True, exclude_none=True)


PLAIN = {
    "model": "m",
    "input": {"messages": [{"role": "user", "content": "hi"}]},
    "sampling": {},
    "service_class": "interactive",
    "truncation": "disabled",
    "metadata": {},
}


def test_every_field_of_a_chat_has_its_place_in_the_job() -> None:
    parts: list[Any] = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}},
        {"type": "text", "text": "b"},
        {"type": "file", "file": {"file_id": "file_1"}},
    ]
    parsed = {**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {}}}
    asked = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": parts, "reasoning_content": "not hers"},
            {"role": "assistant", "content": None, "tool_calls": [parsed], "reasoning_content": "hm"},
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
    made = given(chat_job(asked))
    assert made.pop("input") == {
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
        ({"enable_thinking": True, "reasoning": {"enabled": True}}, {"input": PLAIN["input"] | {"reasoning": {}}}),  # type: ignore[operator] # a dict
        ({"functions": [], "function_call": "auto", "modalities": ["text"], "system": ""}, {}),
        ({f"unknown {number}": 1 for number in range(32)} | {"temperatures" * 4: 1}, None),
    ],
)
def test_a_chat_becomes_this_job(changes: dict[str, Any], expected: dict[str, Any] | None) -> None:
    if expected is None:
        with pytest.raises(InvalidRequest, match="33 unknown fields: at most 32 are accepted"):
            chat_job(changes)
        changes.popitem()
    assert given(chat_job(changes)) == PLAIN | (expected or {})


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
    assert given(completion_job(changes)) == plain | expected


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
    assert given(embed_job(changes)) == plain | {"service_class": "interactive", "metadata": {}} | expected


REFUSED_CHATS: Refused = [
    (
        {"stream_options": {"include_usage": True}},
        "invalid_value",
        "stream_options",
        "`stream_options` is for streams: set `stream` to true",
    ),
    ({"best_of": 1, "n": 2}, "invalid_value", "best_of", "`best_of` is 1 and `n` is 2: leave out `best_of`"),
    (
        {"best_of": 2},
        "unsupported_parameter",
        "best_of",
        "`best_of` over `n` is not supported: send 2 as `n` with `logprobs`, and choose an answer",
    ),
    ({"n": 17}, "invalid_value", "n", "`n`: input should be less than or equal to 16"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs", "`top_logprobs` needs `logprobs`: set it to true"),
    (
        {"max_tokens": 0},
        "invalid_value",
        "max_tokens",
        "`max_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    (
        {"max_completion_tokens": 0, "max_tokens": 5},
        "invalid_value",
        "max_completion_tokens",
        "`max_completion_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    (
        {"ignore_eos": True, "response_format": {"type": "json_object"}},
        "invalid_value",
        "ignore_eos",
        "`ignore_eos`: an answer that follows a grammar ends with it: leave out `ignore_eos`",
    ),
    ({"temperature": 3}, "invalid_value", "temperature", "`temperature`: input should be less than or equal to 2"),
    (
        {"job": {"priority": 11}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    (
        {"job": {"deadline_ms": 0}},
        "invalid_value",
        "job.deadline_ms",
        "`job.deadline_ms`: input should be greater than or equal to 1",
    ),
    (
        {"response_format": {"type": "xml"}},
        "unsupported_parameter",
        "response_format.type",
        "`response_format.type` 'xml' is not supported: one of text, json_object, json_schema",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "invalid_value",
        "response_format.json_schema.schema",
        "`response_format.json_schema.schema` is required",
    ),
    (
        form(None),
        "invalid_value",
        "response_format.json_schema.schema",
        "`response_format.json_schema.schema` is required",
    ),
    (
        {"structured_outputs": {}},
        "invalid_value",
        "structured_outputs",
        "`structured_outputs` takes exactly one of json, regex, choice and grammar",
    ),
    (
        {"structured_outputs": {"json": {}, "regex": "a"}},
        "invalid_value",
        "structured_outputs",
        "`structured_outputs` takes exactly one of json, regex, choice and grammar",
    ),
    (
        {"structured_outputs": {"regex": ""}},
        "invalid_value",
        "structured_outputs.regex",
        "`structured_outputs.regex` has 0 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"structured_outputs": {"json": ""}},
        "invalid_json_schema",
        "structured_outputs.json",
        "`structured_outputs.json` has 0 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"structured_outputs": {"choice": ["x" * 70_000]}},
        "invalid_value",
        "structured_outputs.choice",
        "`structured_outputs.choice` has 70004 characters as text, and 1 to 65536 are accepted",
    ),
    (
        form({"x" * 70_000: 1}),
        "invalid_json_schema",
        "response_format.json_schema.schema",
        "`response_format.json_schema.schema` has 70007 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"guided_json": {}, "guided_regex": "a"},
        "invalid_value",
        "guided_json",
        "give exactly one of guided_json, guided_regex: an answer follows one grammar",
    ),
    (
        {"guided_choice": 5},
        "invalid_value",
        "guided_choice",
        "`guided_choice` cannot be read: Input should be a valid tuple",
    ),
    (
        {"guided_regex": "a", "structured_outputs": {"regex": "b"}},
        "invalid_value",
        "guided_regex",
        "`guided_regex` and `structured_outputs` differ: leave out `guided_regex`, the older name",
    ),
    (
        {"guided_regex": ""},
        "invalid_value",
        "structured_outputs.regex",
        "`structured_outputs.regex` has 0 characters as text, and 1 to 65536 are accepted",
    ),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "invalid_value",
        "structured_outputs",
        "give one of `response_format` and `structured_outputs`: an answer follows one grammar",
    ),
    (
        {"tools": [TOOL, {"type": "web"}]},
        "unsupported_parameter",
        "tools[1].type",
        "`tools[1].type` 'web' is not supported: only functions are",
    ),
    (
        {"tools": [TOOL, TOOL]},
        "invalid_value",
        "tools",
        "`tools`: two functions are named f: each needs a name of its own",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        "unsupported_parameter",
        "tool_choice.type",
        "`tool_choice.type` 'allowed_tools' is not supported: name a function",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "custom"}},
        "unsupported_parameter",
        "tool_choice.type",
        "`tool_choice.type` 'custom' is not supported: name a function",
    ),
    (
        {"tool_choice": "required"},
        "invalid_value",
        "tool_choice",
        "`tool_choice`: there is nothing to choose from: give `tools` as well",
    ),
    (
        turn(role="poet"),
        "unsupported_parameter",
        "messages[0].role",
        "`messages[0].role` 'poet' is not supported: one of system, developer, user, assistant, tool",
    ),
    (
        turn(role="assistant", function_call={"name": "f"}),
        "unsupported_parameter",
        "messages[0].function_call",
        "`messages[0].function_call` is not supported",
    ),
    (
        turn(role="assistant", audio={"id": "a"}),
        "unsupported_parameter",
        "messages[0].audio",
        "`messages[0].audio` is not supported",
    ),
    (
        turn(role="assistant", tool_calls=[CALL, CALL | {"type": "custom"}]),
        "unsupported_parameter",
        "messages[0].tool_calls[1].type",
        "`messages[0].tool_calls[1].type` 'custom' is not supported: only calls of functions are",
    ),
    (
        turn(content=[{"type": "text", "text": "a"}, {"type": "input_audio"}]),
        "unsupported_parameter",
        "messages[0].content[1].type",
        "`messages[0].content[1].type` 'input_audio' is not supported: parts of the user are text, "
        "image_url, and file with a file_id",
    ),
    (
        turn(content=[{"type": "text"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'text' is not supported: parts of the user are text, image_url, "
        "and file with a file_id",
    ),
    (
        turn(content=[{"type": "file", "file": {}}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'file' is not supported: parts of the user are text, image_url, "
        "and file with a file_id",
    ),
    (
        turn(role="assistant", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'image_url' is not supported: only text parts are; images stand "
        "in messages of the user",
    ),
    (
        turn(role="system", content=[{"type": "refusal", "refusal": "x"}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
        "`messages[0].content[0].type` 'refusal' is not supported: only text parts are",
    ),
    (
        {"reasoning": {"summary": "concise"}},
        "unsupported_parameter",
        "reasoning.summary",
        "`reasoning.summary` is not supported: the reasoning is shown as it is, and not shortened: send "
        "auto or detailed",
    ),
    (
        {"reasoning": {"generate_summary": "concise"}},
        "unsupported_parameter",
        "reasoning.generate_summary",
        "`reasoning.generate_summary` is not supported: the reasoning is shown as it is, and not "
        "shortened: send auto or detailed",
    ),
    (
        {"reasoning": {"exclude": True}},
        "unsupported_parameter",
        "reasoning.exclude",
        "`reasoning.exclude` is not supported: leave it out",
    ),
    (
        {"reasoning": {"mode": "x"}},
        "unsupported_parameter",
        "reasoning.mode",
        "`reasoning.mode` is not supported: leave it out",
    ),
    (
        {"reasoning": {"effort": "low"}, "reasoning_effort": "high"},
        "invalid_value",
        "reasoning_effort",
        "`reasoning_effort` says something else than another field about reasoning",
    ),
    (
        {"enable_thinking": True, "reasoning_effort": "none"},
        "invalid_value",
        "reasoning_effort",
        "reasoning is switched on and off at once",
    ),
    (
        {"reasoning": {"enabled": True}, "enable_thinking": False},
        "invalid_value",
        "reasoning.enabled",
        "reasoning is switched on and off at once",
    ),
    (
        {"thinking_budget": 5, "reasoning": {"max_tokens": 6}},
        "invalid_value",
        "thinking_budget",
        "`thinking_budget` says something else than another field about reasoning",
    ),
    (
        {"thinking_budget": 0},
        "invalid_value",
        "thinking_budget",
        "`thinking_budget`: input should be greater than or equal to 1",
    ),
    (
        {"reasoning": {"max_tokens": 0}},
        "invalid_value",
        "reasoning.max_tokens",
        "`reasoning.max_tokens`: input should be greater than or equal to 1",
    ),
    (
        {"verbosity": "low"},
        "unsupported_parameter",
        "verbosity",
        "`verbosity` is not supported: put it into the instructions",
    ),
    (
        {"retrieval": {"vector_store_ids": ["vs_1"]}, "server_tools": {"names": ["a"]}, "store": True},
        "unsupported_parameter",
        "store",
        "`store` does not go with `retrieval`: leave it out",
    ),
    (
        {"server_tools": {"names": ["a"]}, "store": False},
        "unsupported_parameter",
        "store",
        "`store` does not go with `server_tools`: leave it out",
    ),
    (
        {"server_tools": {"names": ["a"]}, "stream": True, "logprobs": True},
        "unsupported_parameter",
        "logprobs",
        "`logprobs` does not go with a stream of `server_tools`: leave one of them out",
    ),
    (
        {"functions": [{"name": "f"}]},
        "unsupported_parameter",
        "functions",
        "`functions` is not supported: it is deprecated, give `tools` instead",
    ),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities", "`modalities` is not supported: leave it out"),
    (
        {"web_search_options": {}},
        "unsupported_parameter",
        "web_search_options",
        "`web_search_options` is not supported: leave it out",
    ),
    (
        {"Max-Tokens": 1},
        "unsupported_parameter",
        "Max-Tokens",
        "unknown field `Max-Tokens`: did you mean `max_tokens`?",
    ),
]
REFUSED_COMPLETIONS: Refused = [
    ({"echo": True, "stream": True}, "unsupported_parameter", "echo", "`echo` is not streamed: leave out `stream`"),
    ({"prompt": []}, "invalid_value", "prompt", "`prompt`: array should have at least 1 item, not 0"),
    (
        {"prompt": ["a", "b"], "suffix": "z"},
        "invalid_value",
        "prompt",
        "`prompt`: `suffix` goes with `prompt` as text: it is what follows the gap",
    ),
    (
        {"prompt": ["a"] * 9, "n": 16},
        "invalid_value",
        "n",
        "`n`: this makes 144 answers: at most 128 are generated for one request",
    ),
    ({"prompt": [-1]}, "invalid_value", "token_ids[0]", "`token_ids[0]`: input should be greater than or equal to 0"),
    (
        {"max_tokens": 0},
        "invalid_value",
        "max_tokens",
        "`max_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    ({"messages": []}, "unsupported_parameter", "messages", "`messages` is not supported: leave it out"),
]
REFUSED_INPUTS: Refused = [
    (
        {"input": []},
        "invalid_value",
        "input",
        "`input` is a text, a list of texts, a list of token ids, or a list of such lists, and not empty",
    ),
    (
        {"input": {}},
        "invalid_value",
        "input",
        "`input` is a text, a list of texts, a list of token ids, or a list of such lists, and not empty",
    ),
    ({"input": ["a", 1]}, "invalid_value", "input[1]", "`input[1]` must be a text, like the first entry"),
    (
        {"input": [[1], "a"]},
        "invalid_value",
        "input[1]",
        "`input[1]` must be a list of token ids, like the first entry",
    ),
    (
        {"input": [[1], [True]]},
        "invalid_value",
        "input[1]",
        "`input[1]` must be a list of token ids, like the first entry",
    ),
    (
        {"input": [{"image": "x"}, {"img": "y"}]},
        "invalid_value",
        "input[1]",
        '`input[1]` must be an image as `{"image": "https://…"}`, like the first entry',
    ),
    (
        {"input": [{"image": "x", "text": "t"}]},
        "invalid_value",
        "input[0]",
        '`input[0]` must be an image as `{"image": "https://…"}`, like the first entry',
    ),
    ({"input": ""}, "invalid_value", "input", "`input`: string should have at least 1 character"),
    ({"input": ["a", ""]}, "invalid_value", "input[1]", "`input[1]`: string should have at least 1 character"),
    (
        {"input": [-1], "own_token_ids": True},
        "invalid_value",
        "input[0]",
        "`input[0]`: input should be greater than or equal to 0",
    ),
    (
        {"input": [[1], []], "own_token_ids": True},
        "invalid_value",
        "input[1]",
        "`input[1]`: array should have at least 1 item, not 0",
    ),
    ({"input": ["a"] * 2049}, "invalid_value", "input", "`input`: array should have at most 2048 items, not 2049"),
    ({"dimensions": 0}, "invalid_value", "dimensions", "`dimensions`: input should be greater than or equal to 1"),
    (
        {"job": {"priority": 99}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    (
        {"normalize": True},
        "unsupported_parameter",
        "normalize",
        "`normalize` is not supported: the model's own files decide",
    ),
    (
        {"input": [1]},
        "invalid_value",
        "input",
        "`input` has token ids, and clients make them with the tokenizer of OpenAI's models: send texts (LangChain's "
        "OpenAIEmbeddings: `check_embedding_ctx_length=False`), or set `own_token_ids` to true if the ids are of this "
        "model's own vocabulary",
    ),
]


@pytest.mark.parametrize(
    ("make", "cases"),
    [(chat_job, REFUSED_CHATS), (completion_job, REFUSED_COMPLETIONS), (embed_job, REFUSED_INPUTS)],
    ids=["chat", "completion", "embeddings"],
)
def test_an_error_names_the_field_of_the_request(make: Any, cases: Refused, subtests: pytest.Subtests) -> None:
    for changes, code, param, message in cases:
        with subtests.test(message):
            with pytest.raises(InvalidRequest) as raised:
                make(changes)
            assert (raised.value.code, raised.value.param, raised.value.message) == (code, param, message)
