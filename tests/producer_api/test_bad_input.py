"""Every bad request gets one clear error in the one shape, and leaves nothing behind."""

import http.client
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import redis

from headrace.store.db.database import Database
from tests.producer_api.calling import CHAT, PROMPT, error_of, num_jobs
from tests.producer_api.conftest import CONTEXT_WINDOW
from tests.producer_api.serving import ApiServer

Body = dict[str, Any]


def _messages(*messages: Body) -> Body:
    return {"model": "tiny", "input": {"messages": list(messages)}}


USER = {"role": "user", "content": "hi"}


def _tool(name: str, **function: Any) -> Body:
    return {"type": "function", "function": {"name": name, **function}}


def _nested(levels: int) -> Body:
    return {"type": "object", "not": _nested(levels - 1)} if levels else {}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "1"}

# Body, the field it is about, and words that its message must have.
BAD_JOBS: dict[str, tuple[Any, str | None, str]] = {
    "no model": ({"input": {"prompt": "x"}}, "model", "is required"),
    "no input": ({"model": "tiny"}, "input", "is required"),
    "messages beside input": ({"model": "tiny", "messages": [USER]}, "messages", "send it as `input.messages`"),
    "max_tokens beside sampling": (PROMPT | {"max_tokens": 5}, "max_tokens", "send it as `sampling.max_tokens`"),
    "unknown model": (PROMPT | {"model": "huge"}, "model", "known: tiny"),
    "unknown version": (PROMPT | {"model": "tiny@9"}, "model", "no model"),
    "unknown alias": (PROMPT | {"model": "tiny@canary"}, "model", "no model"),
    "model is a number": (PROMPT | {"model": 7}, "model", "string"),
    "unknown task": (PROMPT | {"task": "paint"}, "task", "generate"),
    "unknown field": (PROMPT | {"colour": "red"}, "colour", "remove it or correct its name"),
    "unknown sampling field": (PROMPT | {"sampling": {"mirostat": 2}}, "sampling.mirostat", "remove it"),
    "min_p": (PROMPT | {"sampling": {"min_p": 1.5}}, "sampling.min_p", "less than or equal to 1"),
    "min_tokens": (PROMPT | {"sampling": {"min_tokens": 9, "max_tokens": 8}}, "sampling.min_tokens", "at most 8"),
    "stop token": (PROMPT | {"sampling": {"stop_token_ids": [257]}}, "sampling.stop_token_ids", "vocabulary"),
    "body is a list": ([PROMPT], None, "JSON object"),
    "body is null": (None, None, "JSON"),
    "prompt and messages": ({"model": "tiny", "input": {"prompt": "x", "messages": [USER]}}, "input", "exactly one"),
    "neither": ({"model": "tiny", "input": {}}, "input", "exactly one"),
    "no messages": (_messages(), "input.messages", "at least 1"),
    "message without content": (_messages(USER, {"role": "user"}), "input.messages[1].content", "is required"),
    "empty prompt": ({"model": "tiny", "input": {"prompt": ""}}, "input.prompt", "at least 1"),
    "unknown role": (_messages({"role": "wizard", "content": "x"}), "input.messages[0].role", "'assistant'"),
    "content is an object": (_messages({"role": "user", "content": {}}), "input.messages[0].content", "string"),
    "too many messages": (_messages(*[USER] * 1025), "input.messages", "1024"),
    "tools with a prompt": ({"model": "tiny", "input": {"prompt": "x", "tools": [_tool("f")]}}, "input", "`messages`"),
    "prompt over the context": (
        {"model": "tiny", "input": {"prompt": "x" * CONTEXT_WINDOW}},
        "input",
        "shorten the prompt",
    ),
    "max_tokens over the context": (PROMPT | {"sampling": {"max_tokens": 508}}, "sampling.max_tokens", "at most 507"),
    "max_tokens zero": (PROMPT | {"sampling": {"max_tokens": 0}}, "sampling.max_tokens", "greater than or equal to 1"),
    "max_tokens huge": (PROMPT | {"sampling": {"max_tokens": 10**30}}, "sampling.max_tokens", ""),
    "max_tokens text": (PROMPT | {"sampling": {"max_tokens": "many"}}, "sampling.max_tokens", "integer"),
    "temperature": (PROMPT | {"sampling": {"temperature": 2.1}}, "sampling.temperature", "less than or equal to 2"),
    "top_p": (PROMPT | {"sampling": {"top_p": 0}}, "sampling.top_p", "greater than 0"),
    "seed": (PROMPT | {"sampling": {"seed": -1}}, "sampling.seed", "0"),
    "too many stops": (PROMPT | {"sampling": {"stop": ["x"] * 17}}, "sampling.stop", "16"),
    "too many logprobs": (PROMPT | {"sampling": {"logprobs": 21}}, "sampling.logprobs", "less than or equal to 20"),
    "grammar of no kind": (
        PROMPT | {"sampling": {"grammar": {"kind": "poem", "text": "x"}}},
        "sampling.grammar.kind",
        "'json_schema'",
    ),
    "grammar without an end": (
        PROMPT | {"sampling": {"grammar": {"kind": "regex", "text": "x"}, "ignore_eos": True}},
        "sampling",
        "leave out `ignore_eos`",
    ),
    "priority": (PROMPT | {"priority": 10}, "priority", "9"),
    "deadline": (PROMPT | {"deadline_ms": 0}, "deadline_ms", "1"),
    "service class": (PROMPT | {"service_class": "royal"}, "service_class", "'interactive'"),
    "metadata value": (PROMPT | {"metadata": {"k": 1}}, "metadata.k", "string"),
    "too much metadata": (PROMPT | {"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
    "webhook is http": (PROMPT | {"webhook": {"url": "http://example.com/"}}, "webhook.url", "https"),
    "webhook is local": (PROMPT | {"webhook": {"url": "https://127.0.0.1/"}}, "webhook.url", ""),
    "webhook is metadata": (PROMPT | {"webhook": {"url": "https://169.254.169.254/"}}, "webhook.url", ""),
    "webhook has a password": (PROMPT | {"webhook": {"url": "https://a:b@example.com/"}}, "webhook.url", "password"),
    "NUL": ({"model": "tiny", "input": {"prompt": "a\0b"}}, None, "U+0000"),
    "NUL in metadata": (PROMPT | {"metadata": {"k": "\0"}}, None, "U+0000"),
}


def test_a_bad_job_is_refused(
    api: httpx2.Client, db: Database, redis_client: redis.Redis, subtests: pytest.Subtests
) -> None:
    for name, (body, param, words) in BAD_JOBS.items():
        with subtests.test(name):
            response = api.post("/v1/jobs", json=body)
            error = error_of(response)
            assert response.status_code == (404 if error["code"] == "model_not_found" else 400), error
            assert (error["type"], error["param"]) == ("invalid_request_error", param)
            assert words in error["message"]
            assert num_jobs(db) == 0
            assert redis_client.llen("tiny@1") == 0


BAD_CODES = {
    "unknown model": "model_not_found",
    "unknown field": "unsupported_parameter",
    "prompt over the context": "context_length_exceeded",
    "max_tokens over the context": "context_length_exceeded",
    "webhook is local": "webhook_url_not_allowed",
    "temperature": "invalid_value",
}


def test_a_refusal_has_its_code(api: httpx2.Client, subtests: pytest.Subtests) -> None:
    for name, code in BAD_CODES.items():
        with subtests.test(name):
            assert error_of(api.post("/v1/jobs", json=BAD_JOBS[name][0]))["code"] == code


def _with_message(**message: Any) -> Body:
    return {"model": "tiny", "messages": [USER, message]}


def _with_schema(schema: Body) -> Body:
    named = {"name": "answer", "schema": schema}
    return CHAT | {"response_format": {"type": "json_schema", "json_schema": named}}


def _deep_schema(depth: int) -> Body:
    schema: Body = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema, "type": "array"}
    return schema


BAD_CHATS: dict[str, tuple[Any, str | None, str]] = {
    "no messages": ({"model": "tiny"}, "messages", "is required"),
    "messages empty": ({"model": "tiny", "messages": []}, "messages", "at least 1"),
    "content missing": (_with_message(role="user"), "messages[1].content", "is required"),
    "refusal of the user": (
        _with_message(role="user", content=[{"type": "refusal", "refusal": "No."}]),
        "messages[1].content[0].type",
        "parts of the user are text, image_url",
    ),
    "role": (_with_message(role="function", content="x", name="f"), "messages[1].role", "not supported"),
    "picture": (
        _with_message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "messages",
        "takes no images in messages: use one of which GET /v1/models/NAME says that it accepts images",
    ),
    "function_call in a message": (
        _with_message(role="assistant", content=None, function_call={"name": "f", "arguments": "{}"}),
        "messages[1].function_call",
        "not supported",
    ),
    "name": (_with_message(role="user", name="a b", content="x"), "messages[1].name", "pattern"),
    "call of no function": (
        _with_message(role="assistant", tool_calls=[{"id": "1"}]),
        "messages[1].tool_calls[0].function",
        "is required",
    ),
    "call of another kind": (
        _with_message(role="assistant", tool_calls=[{"id": "1", "type": "custom", "custom": {}}]),
        "messages[1].tool_calls[0].type",
        "only calls of functions",
    ),
    "call of a strange name": (
        _with_message(role="assistant", tool_calls=[{"id": "1", "function": {"name": "a b", "arguments": "{}"}}]),
        "messages[1].tool_calls[0].function.name",
        "pattern",
    ),
    "calls of the user": (
        _with_message(role="user", content="x", tool_calls=[CALL]),
        "messages[1]",
        "only the assistant",
    ),
    "result without an id": (_with_message(role="tool", content="x"), "messages[1]", "`tool_call_id`"),
    "id without a result": (_with_message(role="user", content="x", tool_call_id="1"), "messages[1]", "of role `tool`"),
    "result of nothing": (_with_message(**RESULT), "messages", "message 1 answers a call"),
    "result given twice": (
        CHAT | {"messages": [USER, CALLING, RESULT, RESULT]},
        "messages",
        "message 3 answers a call",
    ),
    "result too late": (CHAT | {"messages": [USER, CALLING, USER, RESULT]}, "messages", "before the results of c1"),
    "no result": (CHAT | {"messages": [USER, CALLING]}, "messages", "results of c1 are missing"),
    "one id twice": (
        _with_message(role="assistant", tool_calls=[CALL, CALL]),
        "messages",
        "two calls of one id",
    ),
    "n": (CHAT | {"n": 17}, "n", "less than or equal to 16"),
    "top_logprobs alone": (CHAT | {"top_logprobs": 3}, "top_logprobs", "set it to true"),
    "too many top_logprobs": (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "equal to 20"),
    "logit_bias": (CHAT | {"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
    "logit_bias of no token": (CHAT | {"logit_bias": {"257": 1}}, "logit_bias", "vocabulary of 257"),
    "logit_bias of a text": (CHAT | {"logit_bias": {"water": 1}}, "logit_bias.water", "integer"),
    "min_tokens and a grammar": (
        CHAT | {"response_format": {"type": "json_object"}, "min_tokens": 3},
        "min_tokens",
        "leave out `min_tokens`",
    ),
    "functions": (CHAT | {"functions": [{"name": "f"}]}, "functions", "give `tools`"),
    "function_call": (CHAT | {"function_call": {"name": "f"}}, "function_call", "give `tool_choice`"),
    "tool without a function": (CHAT | {"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    "tool of another kind": (CHAT | {"tools": [{"type": "web_search"}]}, "tools[0].type", "only functions"),
    "tool with a strange name": (CHAT | {"tools": [_tool("a b")]}, "tools[0].function.name", "pattern"),
    "tool with a strange field": (CHAT | {"tools": [_tool("f", colour=1)]}, "tools[0].function.colour", "remove it"),
    "tools of one name": (CHAT | {"tools": [_tool("f"), _tool("f")]}, "tools", "two functions are named f"),
    "too many tools": (CHAT | {"tools": [_tool(f"f{n}") for n in range(129)]}, "tools", "128"),
    "parameters of no object": (
        CHAT | {"tools": [_tool("f", parameters={"type": "string"})]},
        "tools[0].function.parameters",
        '"type": "object"',
    ),
    "parameters without end": (
        CHAT | {"tools": [_tool("f", parameters={"description": "x" * 65_536})]},
        "tools[0].function.parameters",
        "65536 characters",
    ),
    "parameters too deep": (
        CHAT | {"tools": [_tool("f", parameters=_nested(300))]},
        "tools[0].function.parameters",
        "64 levels",
    ),
    "tool_choice alone": (CHAT | {"tool_choice": "required"}, "tool_choice", "give `tools`"),
    "tool_choice unknown": (CHAT | {"tools": [_tool("f")], "tool_choice": "any"}, "tool_choice", "`required`"),
    "tool_choice of no tool": (
        CHAT | {"tools": [_tool("f")], "tool_choice": _tool("g")},
        "tool_choice",
        "no tool is named g",
    ),
    "tool_choice of several": (
        CHAT | {"tools": [_tool("f")], "tool_choice": {"type": "allowed_tools"}},
        "tool_choice.type",
        "name a function",
    ),
    "parameters that are no followable schema": (
        CHAT
        | {
            "tools": [_tool("f"), _tool("g", parameters={"required": ["x"], "additionalProperties": False})],
            "tool_choice": "required",
        },
        "tools[1].function.parameters",
        "cannot be held to its parameters",
    ),
    "a call that never ends": (
        CHAT | {"tools": [_tool("f")], "tool_choice": "required", "ignore_eos": True},
        "ignore_eos",
        "leave out `ignore_eos`",
    ),
    "audio": (CHAT | {"audio": {"voice": "x"}}, "audio", "not supported"),
    "modalities": (CHAT | {"modalities": ["text", "audio"]}, "modalities", "not supported"),
    "format of no type": (CHAT | {"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    "no schema": (
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "is required",
    ),
    "impossible schema": (
        _with_schema({"type": "integer", "minimum": 5, "maximum": 3}),
        "response_format",
        "the JSON schema cannot be followed",
    ),
    "unsupported schema": (_with_schema({"type": "array", "uniqueItems": True}), "response_format", "uniqueItems"),
    "damaged schema": (_with_schema({"type": "strin"}), "response_format", "strin"),
    "deep schema": (_with_schema(_deep_schema(300)), "response_format", "recursion limit"),
    "very deep schema": (_with_schema(_deep_schema(900)), "response_format", "nested too deeply"),
    "huge schema": (
        _with_schema({"enum": ["x" * 70_000]}),
        "response_format.json_schema.schema",
        "65536",
    ),
    "damaged regex": (CHAT | {"structured_outputs": {"regex": "[a"}}, "structured_outputs", "cannot be followed"),
    "look-ahead": (CHAT | {"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs", "cannot be followed"),
    "damaged Lark": (CHAT | {"structured_outputs": {"grammar": "start: nope"}}, "structured_outputs", "nope"),
    "no choice": (CHAT | {"structured_outputs": {"choice": []}}, "structured_outputs", "none of them empty"),
    "two grammars": (
        CHAT | {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs",
        "exactly one",
    ),
    "both ways": (
        CHAT | {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs",
        "one of",
    ),
    "no end": (
        CHAT | {"response_format": {"type": "json_object"}, "ignore_eos": True},
        "ignore_eos",
        "leave out `ignore_eos`",
    ),
    "guided otherwise": (
        CHAT | {"guided_regex": "a", "structured_outputs": {"regex": "b"}},
        "guided_regex",
        "leave out `guided_regex`",
    ),
    "guided twice": (CHAT | {"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex", "exactly one"),
    "guided by nonsense": (CHAT | {"guided_choice": "a"}, "guided_choice", "cannot be read"),
    "guided impossibly": (CHAT | {"guided_regex": r"[^\s\S]"}, "guided_regex", "cannot be followed"),
    "min_p": (CHAT | {"min_p": -0.2}, "min_p", "greater than or equal to 0"),
    "temperature": (CHAT | {"temperature": 3}, "temperature", "less than or equal to 2"),
    "stop": (CHAT | {"stop": [""]}, "stop[0]", "at least 1"),
    "max_tokens": (CHAT | {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    "max_completion_tokens": (CHAT | {"max_completion_tokens": 0}, "max_completion_tokens", "1"),
    "max_tokens over the context": (CHAT | {"max_tokens": 511}, "max_tokens", "`max_tokens` is 511"),
    "prompt over the context": (
        {"model": "tiny", "messages": [{"role": "user", "content": "x" * 600}]},
        "messages",
        "shorten the prompt",
    ),
    "stream_options": (CHAT | {"stream_options": {"include_usage": True}}, "stream_options", "set `stream`"),
    "service_tier": (CHAT | {"service_tier": "scale"}, "service_tier", "'flex'"),
    "template's own name": (
        CHAT | {"chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
        "`messages` is set by the server",
    ),
    "template's huge number": (
        CHAT | {"chat_template_kwargs": {"indent": 10**9}},
        "chat_template_kwargs",
        "numbers are between",
    ),
    "template's long text": (CHAT | {"chat_template_kwargs": {"a": "x" * 5000}}, "chat_template_kwargs", "4096"),
    "template's odd name": (CHAT | {"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs.a b", "pattern"),
    "job.colour": (CHAT | {"job": {"colour": 1}}, "job.colour", "remove it"),
    "job.priority": (CHAT | {"job": {"priority": 11}}, "job.priority", "9"),
    "job.webhook": (CHAT | {"job": {"webhook": {"url": "https://10.0.0.1"}}}, "job.webhook.url", "job.webhook.url"),
    "job.on_disconnect": (CHAT | {"job": {"on_disconnect": "wait"}}, "job.on_disconnect", "'cancel'"),
}


BAD_COMPLETIONS: dict[str, tuple[Body, str, str]] = {
    "no prompt": ({"model": "tiny"}, "prompt", "is required"),
    "empty prompt": ({"model": "tiny", "prompt": ""}, "prompt", "at least 1"),
    "two kinds of prompts": ({"model": "tiny", "prompt": ["a", [1]]}, "prompt[1]", "valid string"),
    "no prompts": ({"model": "tiny", "prompt": []}, "prompt", "at least 1"),
    "an empty prompt": ({"model": "tiny", "prompt": ["a", ""]}, "prompt[1]", "at least 1"),
    "a long prompt": ({"model": "tiny", "prompt": ["a", "x" * 600]}, "prompt[1]", "shorten the prompt"),
    "an unknown token": ({"model": "tiny", "prompt": [[1], [257]]}, "prompt[1]", "vocabulary"),
    "too many answers": ({"model": "tiny", "prompt": ["a"] * 20, "n": 16}, "n", "at most 128"),
    "fewer to choose from": ({"model": "tiny", "prompt": "a", "n": 2, "best_of": 1}, "best_of", "leave out `best_of`"),
    "unknown token": ({"model": "tiny", "prompt": [1, 257]}, "prompt", "vocabulary"),
    "negative token": ({"model": "tiny", "prompt": [[1, -1]]}, "token_ids[1]", "greater than or equal to 0"),
    "long prompt": ({"model": "tiny", "prompt": "x" * 600}, "prompt", "shorten the prompt"),
    "messages": ({"model": "tiny", "prompt": "a", "messages": []}, "messages", "not supported"),
    **{
        f"{name} {value}": ({"model": "tiny", "prompt": "a", name: value}, name, words)
        for name, value, words in (
            ("n", 0, "greater than or equal to 1"),
            ("n", True, "valid integer"),
            ("best_of", 3, "not supported"),
            ("suffix", "end", "no tokens for filling in"),
            ("chat_template_kwargs", {"a": 1}, "not supported"),
            ("max_tokens", 0, "greater than or equal to 1"),
            ("logprobs", 21, "equal to 20"),
        )
    },
    "streamed echo": ({"model": "tiny", "prompt": "a", "echo": True, "stream": True}, "echo", "not streamed"),
    "suffix of tokens": ({"model": "tiny", "prompt": [1], "suffix": "b"}, "prompt", "goes with `prompt` as text"),
    "impossible grammar": (
        {"model": "tiny", "prompt": "a", "structured_outputs": {"regex": r"[^\s\S]"}},
        "structured_outputs",
        "cannot be followed",
    ),
}


def test_a_bad_completion_is_refused(api: httpx2.Client, db: Database, subtests: pytest.Subtests) -> None:
    for name, (body, param, words) in BAD_COMPLETIONS.items():
        with subtests.test(name):
            response = api.post("/v1/completions", json=body)
            error = error_of(response)
            assert (response.status_code, error["param"]) == (400, param), error
            assert words in error["message"]
            assert (error["code"] == "unsupported_parameter") == (
                words in ("not supported", "not streamed") or "one request" in words
            )
            assert num_jobs(db) == 0


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_bad_chat_is_refused(api: httpx2.Client, db: Database, subtests: pytest.Subtests, is_stream: bool) -> None:
    for name, (body, param, words) in BAD_CHATS.items():
        if is_stream and name == "stream_options":
            continue
        with subtests.test(name):
            response = api.post("/v1/chat/completions", json=body | {"stream": is_stream})
            error = error_of(response)
            assert (response.status_code, error["param"]) == (400, param), error
            assert words in error["message"]
            assert (error["code"] == "invalid_json_schema") == name.endswith("schema") or name == "no schema"
            assert num_jobs(db) == 0


MALFORMED = {
    "nothing": b"",
    "not JSON": b"{model: tiny}",
    "cut off": b'{"model": "tiny", "input": {"prompt": "x"',
    "NaN": b'{"model": "tiny", "input": {"prompt": "x"}, "sampling": {"temperature": NaN}}',
    "lone surrogate": b'{"model": "tiny", "input": {"prompt": "\\ud800"}}',
    "not UTF-8": b'{"model": "tiny", "input": {"prompt": "\xff"}}',
    "deep": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/chat/completions"])
def test_malformed_json_is_refused(api: httpx2.Client, db: Database, subtests: pytest.Subtests, route: str) -> None:
    for name, content in MALFORMED.items():
        with subtests.test(name):
            response = api.post(route, content=content, headers={"Content-Type": "application/json"})
            error = error_of(response)
            assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", None)
            assert "JSON" in error["message"]
            assert num_jobs(db) == 0


def test_every_route_reads_json_strictly(api: httpx2.Client) -> None:
    said: dict[str, str] = {}
    for path, methods in api.get("/openapi.json").json()["paths"].items():
        for method, route in methods.items():
            if "application/json" in route.get("requestBody", {}).get("content", {}):
                place = re.sub(r"\{[^}]+\}", "x", path)
                answer = api.request(method, place, content=b'{"x": NaN}', headers={"Content-Type": "application/json"})
                said[f"{method} {path}"] = error_of(answer)["message"]
    assert len(said) > 50
    assert {name: one for name, one in said.items() if "valid JSON" not in one} == {}


def test_other_encodings_are_refused(api: httpx2.Client, db: Database) -> None:
    form = api.post("/v1/jobs", data={"model": "tiny"})
    assert "Content-Type: application/json" in error_of(form)["message"]
    packed = api.post("/v1/jobs", content=b"x", headers={"Content-Encoding": "br"})
    assert "gzip or uncompressed" in error_of(packed)["message"]
    assert (form.status_code, packed.status_code, packed.headers["accept-encoding"]) == (400, 415, "gzip")
    assert num_jobs(db) == 0


def _large(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // 65_536):
        yield b"x" * 65_536


def test_a_huge_body_is_refused_however_it_is_sent(api: httpx2.Client, db: Database) -> None:
    declared = api.post("/v1/jobs", content=b"x" * (4 << 20))
    chunked = api.post("/v1/jobs", content=_large(4 << 20))
    for response in (declared, chunked):
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
        assert response.headers["connection"] == "close"
    assert num_jobs(db) == 0


def test_a_huge_body_is_refused_before_it_is_sent(server: ApiServer, key: str) -> None:
    address = urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.putrequest("POST", "/v1/jobs")
    connection.putheader("Authorization", f"Bearer {key}")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    connection.close()


def test_a_body_at_the_limit_is_read(api: httpx2.Client) -> None:
    body = b'{"model": "tiny", "input": {"prompt": "x"}}'
    padded = body + b" " * ((1 << 20) - len(body))
    assert api.post("/v1/jobs", content=padded, headers={"Content-Type": "application/json"}).status_code == 202


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"stop": 5}, "`stop`: input should be a valid string, or input should be a valid array", "stop"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "is required", "messages[0].content[0].type"),
        ({"stop": 5, "user": 5}, "(and 1 more)", "stop"),
    ],
)
def test_a_wrong_field_is_named_once_and_others_are_counted(
    api: httpx2.Client, fields: dict[str, Any], message: str, param: str
) -> None:
    error = error_of(api.post("/v1/chat/completions", json=CHAT | fields))
    assert error["message"].endswith(message)
    assert error["param"] == param


def test_unknown_routes_and_methods(api: httpx2.Client) -> None:
    missing = api.get("/v1/horses")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = api.delete("/v1/jobs")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST"
    assert error_of(api.get("/favicon.ico"))["code"] == "not_found"


def test_strange_ids_are_not_found(api: httpx2.Client, subtests: pytest.Subtests) -> None:
    for job_id in ("job_0", "%00", "..%2f..", "job_' OR 1=1 --", "ж" * 300):
        for suffix in ("", "/events", "/timeline", "/cancel"):
            with subtests.test(job_id + suffix):
                method = "POST" if suffix == "/cancel" else "GET"
                response = api.request(method, f"/v1/jobs/{job_id}{suffix}")
                assert response.status_code in (400, 404), response.text
                assert error_of(response)["code"] in ("not_found", "invalid_value")


def test_a_wait_is_a_number_of_seconds(api: httpx2.Client) -> None:
    for wait in ("-1", "soon", "nan"):
        response = api.get("/v1/jobs/job_0", params={"wait": wait})
        assert (response.status_code, error_of(response)["param"]) == (400, "wait")
