"""The jobs and rows that requests for a response become, whole, and what is said of the others. No server."""

from typing import Any

import pytest

from producer_api.responses.response_items import (
    InputItem,
    images_in,
    message,
    messages_of,
    read_items,
    references_of,
)
from producer_api.responses.response_request import ResponseContext, ResponseRequest, to_job
from prompts.prompt_template import FilledTemplate
from store.errors import InvalidRequest
from store.payloads.prompt_reference import PromptUse

ASKED: dict[str, Any] = {"model": "m", "input": "hi"}
FUNCTION: dict[str, Any] = {"type": "function", "name": "f"}
SEARCH: dict[str, Any] = {"type": "file_search", "vector_store_ids": ["vs_1"]}
WEB: dict[str, Any] = {"type": "web_search_preview"}
CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
MCP: dict[str, Any] = {"type": "mcp_call", "server_label": "s", "name": "g", "arguments": "{}"}


def prepared(changes: dict[str, Any], context: ResponseContext | None = None) -> Any:
    return to_job(ResponseRequest.model_validate(ASKED | changes), context or ResponseContext())


def said(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [*parts]} | fields]}


def form(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": fields}}


def items(*given: dict[str, Any]) -> tuple[InputItem, ...]:
    return tuple(InputItem.model_validate(one) for one in given)


def bare(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items without their ids, which have the prefix of their kind."""
    prefixes = {
        "message": "msg_",
        "function_call": "fc_",
        "function_call_output": "fco_",
        "reasoning": "rs_",
        "file_search_call": "fs_",
        "mcp_call": "mcp_",
        "mcp_list_tools": "mcpl_",
        "mcp_approval_response": "mcpa_",
    }
    assert all(one["id"].startswith(prefixes[one["type"]]) for one in found)
    assert len({one["id"] for one in found}) == len(found)
    return [{name: value for name, value in one.items() if name != "id"} for one in found]


def given(job: Any) -> dict[str, Any]:
    """The fields that the request has set."""
    made: dict[str, Any] = job.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return made


DONE = {"status": "completed"}


def test_items_are_stored_with_their_known_fields() -> None:
    parts = [
        {"type": "input_text", "text": "a"},
        {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low", "more": 1},
        {"type": "input_text", "text": "b"},
        {"type": "input_image", "file_id": "file_1"},
    ]
    thought = {
        "summary": [{"type": "summary_text", "text": "Hm"}],
        "content": [{"type": "reasoning_text", "text": "x"}],
    }
    no = [{"type": "output_text", "text": "Well"}, {"type": "refusal", "refusal": ", no."}]
    error = {"content": [{"text": "bad"}, {"text": "luck"}]}
    found = read_items(
        items(
            {"role": "developer", "content": "In Latin.", "more": 1},
            {"type": "message", "role": "user", "content": parts},
            {"type": "reasoning", **thought},
            {"type": "reasoning", "summary": []},
            {**CALL, "namespace": "sky", "more": 1},
            CALL,
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "2"}, no[0]]},
            {"role": "assistant", "content": no},
            {"role": "assistant", "content": None},
            {"type": "file_search_call", "queries": ["q"], "results": []},
            {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "x"}]},
            {**MCP, "output": "7"},
            {**MCP, "error": error},
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": False, "reason": ""},
        ),
        {},
    )
    assert bare(found) == [
        {"type": "message", **DONE, "role": "developer", "content": [{"type": "input_text", "text": "In Latin."}]},
        {
            "type": "message",
            **DONE,
            "role": "user",
            "content": [
                parts[0],
                {"type": "input_image", "detail": "low", "image_url": "https://x.example/a.png"},
                parts[2],
                {"type": "input_image", "detail": "auto", "file_id": "file_1"},
            ],
        },
        {"type": "reasoning", **DONE, **thought},
        {"type": "reasoning", **DONE, "summary": [], "content": []},
        {**CALL, **DONE, "namespace": "sky"},
        {**CALL, **DONE},
        {"type": "function_call_output", **DONE, "call_id": "c1", "output": "2Well"},
        {
            "type": "message",
            **DONE,
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Well, no.", "annotations": []}],
        },
        {
            "type": "message",
            **DONE,
            "role": "assistant",
            "content": [{"type": "output_text", "text": "", "annotations": []}],
        },
        {"type": "file_search_call", **DONE, "queries": ["q"], "results": None},
        {"type": "mcp_list_tools", **DONE, "server_label": "s", "tools": []},
        {**MCP, **DONE, "output": "7", "error": None},
        {**MCP, **DONE, "output": None, "error": error},
        {
            "type": "mcp_approval_response",
            **DONE,
            "approval_request_id": "mcpr_1",
            "approve": False,
            "reason": None,
        },
    ]
    assert [place for place, _ in images_in(found)] == ["items[1].content[1]", "items[1].content[3]"]


def test_a_reference_stands_for_the_item_of_an_answer() -> None:
    sent = items({"role": "user", "content": "hi"}, {"id": "msg_1"}, {"type": "item_reference", "id": "msg_1"})
    sent += items({"type": "message", "id": "msg_2", "role": "user", "content": "so"})
    assert references_of(sent) == {"msg_1": "input[1].id"}
    stored = {"id": "msg_1", "type": "message"}
    found = read_items(sent, {"msg_1": stored})
    assert found[1:3] == [stored, stored]
    assert found[3]["id"] != "msg_2"
    with pytest.raises(InvalidRequest, match=r"`items\[0\].type` 'item_reference' is not supported: send the item"):
        read_items(items({"id": "msg_1"}), {}, "items")


def test_items_become_messages() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "m"}]}
    thought |= {"content": [{"type": "reasoning_text", "text": "H"}]}
    asked = {"id": "mcpr_1", "type": "mcp_approval_request", "server_label": "s", "name": "f", "arguments": "{}"}
    approved = {"id": "mcp_9", **MCP, "approval_request_id": "mcpr_1", "output": ""}
    before = read_items(
        items(
            {"role": "developer", "content": "In Latin."},
            {"role": "user", "content": "a"},
            {"role": "system", "content": "Loud."},
            thought,
            {**CALL, "namespace": "sky"},
            {**CALL, "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            thought,
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": "d"},
            CALL,
            {"type": "file_search_call", "queries": ["q"]},
            {"type": "mcp_list_tools", "server_label": "s"},
            {**MCP, "server_label": "my s", "name": "find.all", "output": "7"},
            {**MCP, "name": "g" * 80, "error": {"content": [{"text": "bad"}, {"text": "luck"}]}},
        ),
        {},
    )
    one, two = before[-2]["id"], before[-1]["id"]
    answered = {"id": "mcpa_1", "type": "mcp_approval_response"}
    last = [asked, {**asked, "id": "mcpr_2"}, answered, approved, message("user", "so?")]
    assert messages_of("Go.", [*before, *last]) == [
        {"role": "system", "content": "Go.\n\nIn Latin."},
        {"role": "user", "content": "a"},
        {"role": "system", "content": "Loud."},
        {
            "role": "assistant",
            "reasoning_content": "Hm",
            "tool_calls": [
                {"id": "c1", "function": {"name": "sky__f", "arguments": "{}"}},
                {"id": "c2", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {
            "role": "assistant",
            "content": "d",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "assistant", "tool_calls": [{"id": one, "function": {"name": "my_s__find_all", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": one, "content": "7"},
        {"role": "assistant", "tool_calls": [{"id": two, "function": {"name": f"s__{'g' * 61}", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": two, "content": "bad\nluck"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "mcpr_1", "function": {"name": "s__f", "arguments": "{}"}},
                {"id": "mcpr_2", "function": {"name": "s__f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "mcpr_1", "content": "no result"},
        {
            "role": "tool",
            "tool_call_id": "mcpr_2",
            "content": "Error: the call was not approved, so it was not made",
        },
        {"role": "user", "content": "so?"},
    ]
    after = read_items(items({**thought}, MCP, {"role": "assistant", "content": "So."}), {})
    assert messages_of(None, after)[-1] == {"role": "assistant", "content": "So."}
    assert messages_of(None, [message("user", "hi")]) == [{"role": "user", "content": "hi"}]


PLAIN = {
    "model": "m",
    "input": {"messages": [{"role": "user", "content": "hi"}]},
    "sampling": {},
    "service_class": "interactive",
    "truncation": "disabled",
    "metadata": {},
}
ROW = {
    "conversation": None,
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "prompt": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "priority",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def test_every_field_of_a_request_has_its_place_in_the_job_and_the_row() -> None:
    shape = {"type": "json_schema", "name": "n", "schema": {"b": 1, "a": 2}, "strict": True}
    inner = {"type": "function", "name": "g", "description": "d"}
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "background": True,
        "max_output_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_logprobs": 2,
        "text": {"format": {**shape, "more": 1}, "verbosity": "medium", "more": 1},
        "reasoning": {"effort": "low", "summary": "auto", "max_tokens": 9},
        "tools": [{**FUNCTION, "strict": True, "more": 1}, WEB, {"type": "namespace", "name": "sky", "tools": [inner]}],
        "tool_choice": {"type": "function", "name": "g", "namespace": "sky"},
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "truncation": "auto",
        "metadata": {"a": 1},
        "service_tier": "fast",
        "user": "ann",
        "safety_identifier": "mia",
        "prompt_cache_key": "k",
        "top_k": -1,
        "seed": 3,
        "stop": "END",
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "min_p": 0.1,
        "stop_token_ids": [1],
        "logit_bias": {"7": 1},
        "bad_words": ["x"],
        "chat_template_kwargs": {"a": 1},
        "job": {"priority": 2, "max_attempts": 1},
    }
    made = prepared(asked)
    job = given(made.job)
    assert job.pop("input") == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "tools": [
            {"type": "function", "function": {"name": "f", "strict": True}},
            {"type": "function", "function": {"name": "sky__g", "description": "d"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "sky__g"}},
        "parallel_tool_calls": False,
        "chat_template_kwargs": {"a": 1},
        "reasoning": {"effort": "low", "max_tokens": 9},
    }
    assert job.pop("sampling") == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 0,
        "seed": 3,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "min_p": 0.1,
        "stop_token_ids": [1],
        "logit_bias": {"7": 1.0},
        "bad_words": ["x"],
        "logprobs": 2,
        "grammar": {"kind": "json_schema", "text": '{"b": 1, "a": 2}'},
    }
    assert job == {
        "model": "m",
        "service_class": "interactive",
        "truncation": "auto",
        "metadata": {"a": "1"},
        "user": "mia",
        "priority": 2,
        "max_attempts": 1,
    }
    row = made.response
    assert bare(row.input) == [
        {"type": "message", **DONE, "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    ]
    assert (row.previous_id, row.goes_on, row.appends_to, row.answered) == (None, False, None, ())
    assert (row.is_stored, row.is_background) == (True, True)
    nothing = {"description": None, "parameters": None, "strict": None}
    assert row.request == ROW | {
        "instructions": "Be brief.",
        "max_output_tokens": 7,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "detailed"},
        "safety_identifier": "mia",
        "temperature": 0.5,
        "text": {"format": shape, "verbosity": "medium"},
        "tool_choice": {"type": "function", "name": "g"},
        "tools": [
            {**nothing, **FUNCTION, "strict": True},
            {**nothing, **WEB, "name": None},
            {**nothing, "type": "namespace", "name": "sky", "tools": [{**nothing, **inner}]},
        ],
        "top_logprobs": 2,
        "top_p": 0.25,
        "truncation": "auto",
        "user": "ann",
    }


@pytest.mark.parametrize(
    ("changes", "job", "row"),
    [
        ({}, {}, {}),
        ({"user": "ann", "metadata": None}, {"user": "ann"}, {"user": "ann"}),
        ({"service_tier": "auto"}, {}, {}),
        ({"service_tier": "default"}, {"service_class": "standard"}, {"service_tier": "default"}),
        ({"service_tier": "flex"}, {"service_class": "batch"}, {"service_tier": "flex"}),
        ({"background": True}, {"service_class": "standard"}, {"service_tier": "default"}),
        ({"background": True, "service_tier": "auto"}, {"service_class": "standard"}, {"service_tier": "default"}),
        ({"background": True, "service_tier": "priority"}, {}, {}),
        ({"top_k": 5, "stop": ["a", "b"]}, {"sampling": {"top_k": 5, "stop": ["a", "b"]}}, {}),
        ({"include": ["message.output_text.logprobs"]}, {"sampling": {"logprobs": 0}}, {}),
        ({"include": ["reasoning.encrypted_content"], "top_logprobs": 0}, {}, {}),
        (form(type="text"), {}, {}),
        (
            form(type="json_object"),
            {"sampling": {"grammar": {"kind": "json_schema", "text": '{"type": "object"}'}}},
            {"text": {"format": {"type": "json_object"}}},
        ),
        ({"tools": [], "tool_choice": "none"}, {}, {"tool_choice": "none"}),
        ({"reasoning": {"generate_summary": "auto"}}, {}, {"reasoning": {"effort": None, "summary": "detailed"}}),
        ({"background_options": {"completion_window": "soonest"}, "messages": None, "ignore_eos": False}, {}, {}),
    ],
)
def test_a_request_becomes_this_job_and_row(changes: dict[str, Any], job: dict[str, Any], row: dict[str, Any]) -> None:
    made = prepared(changes)
    assert (given(made.job), made.response.request) == (PLAIN | job, ROW | row)


def test_a_response_that_goes_on_stores_what_is_new() -> None:
    old, reply = message("user", "old"), message("assistant", "reply")
    request = {"previous_response_id": "resp_1", "store": False, "instructions": "Go."}
    made = prepared(request, ResponseContext((old,), (reply,)))
    assert given(made.job)["input"]["messages"] == [
        {"role": "system", "content": "Go."},
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "hi"},
    ]
    row = made.response
    assert (row.previous_id, row.goes_on, row.appends_to, row.is_stored) == ("resp_1", True, None, False)
    assert [one["content"][0]["text"] for one in row.input] == ["reply", "hi"]
    known = ResponseContext((old,), referenced={old["id"]: old})
    made = prepared({"conversation": {"id": "conv_1"}}, known)
    assert (made.response.appends_to, made.response.goes_on) == ("conv_1", False)
    assert made.response.request["conversation"] == {"id": "conv_1"}
    again = prepared({"conversation": "conv_1", "input": [{"id": old["id"]}, {"role": "user", "content": "hi"}]}, known)
    assert [one["content"] for one in given(again.job)["input"]["messages"]] == ["old", "hi"]


def test_a_filled_prompt_comes_first_and_its_version_is_shown() -> None:
    filled = FilledTemplate("Be brief.", (("user", "{x}"),))
    use = PromptUse(id="pmpt_1", name="greeting", version=3, digest="d" * 64)
    made = prepared({"prompt": {"id": "pmpt_1"}}, ResponseContext(filled=filled, use=use))
    assert [one["content"] for one in given(made.job)["input"]["messages"]] == ["Be brief.", "{x}", "hi"]
    assert given(made.job)["input"]["special_tokens"] == "text"
    assert made.response.request["prompt"]["version"] == "3"
    assert made.response.request["instructions"] == "Be brief."
    own = prepared({"prompt": {"id": "pmpt_1"}, "instructions": ""}, ResponseContext(filled=filled, use=use))
    assert [one["content"] for one in given(own.job)["input"]["messages"]] == ["{x}", "hi"]


REFUSED: list[tuple[dict[str, Any], str, str | None, str]] = [
    ({"input": None}, "invalid_value", "input", "`input` is required"),
    (
        {"conversation": "conv_1", "store": False},
        "invalid_value",
        "store",
        "a response of a conversation must be stored: leave out `store`",
    ),
    (
        {"stream_options": {}},
        "invalid_value",
        "stream_options",
        "`stream_options` is for streams: set `stream` to true",
    ),
    (
        {"stream": False, "stream_options": {}},
        "invalid_value",
        "stream_options",
        "`stream_options` is for streams: set `stream` to true",
    ),
    (
        {"background": True, "store": False},
        "invalid_value",
        "store",
        "a background response must be stored: leave out `store`",
    ),
    (
        {"reasoning": {"summary": "concise"}},
        "unsupported_parameter",
        "reasoning.summary",
        "`reasoning.summary` is not supported: the reasoning is shown as it is, and not shortened: send "
        "auto or detailed",
    ),
    (
        {"text": {"verbosity": "low"}},
        "unsupported_parameter",
        "text.verbosity",
        "`text.verbosity` is not supported: put it into the instructions",
    ),
    (
        {"max_tokens": 5},
        "unsupported_parameter",
        "max_tokens",
        "`max_tokens` is not supported: send `max_output_tokens`",
    ),
    (
        {"response_format": {"type": "json_object"}},
        "unsupported_parameter",
        "response_format",
        "`response_format` is not supported: send `text.format`",
    ),
    (
        {"json_schema": {"a": 1}},
        "unsupported_parameter",
        "json_schema",
        "`json_schema` is not supported: send `text.format`",
    ),
    (
        {"guided_json": {"a": 1}},
        "unsupported_parameter",
        "guided_json",
        "`guided_json` is not supported: send `text.format` with a schema",
    ),
    (
        {"structured_outputs": {"regex": "a"}},
        "unsupported_parameter",
        "structured_outputs",
        "`structured_outputs` is not supported: send `text.format` with a schema",
    ),
    ({"regex": "a+"}, "unsupported_parameter", "regex", "`regex` is not supported: send `text.format` with a schema"),
    ({"messages": []}, "unsupported_parameter", "messages", "`messages` is not supported: send `input`"),
    (
        {"reasoning_effort": "low"},
        "unsupported_parameter",
        "reasoning_effort",
        "`reasoning_effort` is not supported: send `reasoning.effort`",
    ),
    (
        {"thinking_budget": 4},
        "unsupported_parameter",
        "thinking_budget",
        "`thinking_budget` is not supported: send `reasoning.max_tokens`",
    ),
    (
        {"verbosity": "low"},
        "unsupported_parameter",
        "verbosity",
        "`verbosity` is not supported: put it into the instructions",
    ),
    ({"logprobs": True}, "unsupported_parameter", "logprobs", "`logprobs` is not supported: send `top_logprobs`"),
    (
        {"functions": [{}]},
        "unsupported_parameter",
        "functions",
        "`functions` is not supported: it is deprecated, give `tools` instead",
    ),
    (
        {"function_call": {"name": "f"}},
        "unsupported_parameter",
        "function_call",
        "`function_call` is not supported: it is deprecated, give `tool_choice` and `tools` instead",
    ),
    (
        {"context_management": [{}]},
        "unsupported_parameter",
        "context_management",
        "`context_management` is not supported: leave it out",
    ),
    (
        {"background_options": {"completion_window": "later"}},
        "unsupported_parameter",
        "background_options",
        "`background_options` is not supported: leave it out",
    ),
    (
        {"max_new_tokens": 4},
        "unsupported_parameter",
        "max_new_tokens",
        "`max_new_tokens` is not supported: send `max_output_tokens`",
    ),
    ({"stop_words": ["x"]}, "unsupported_parameter", "stop_words", "`stop_words` is not supported: send `stop`"),
    (
        {"max_output_token": 3},
        "unsupported_parameter",
        "max_output_token",
        "unknown field `max_output_token`: did you mean `max_output_tokens`?",
    ),
    (
        {"max_output_tokens": 0},
        "invalid_value",
        "max_output_tokens",
        "`max_output_tokens`: it should be greater than or equal to 1: 0 is for `echo`",
    ),
    ({"temperature": 2.5}, "invalid_value", "temperature", "`temperature`: input should be less than or equal to 2"),
    (
        {"min_tokens": 3, "text": {"format": {"type": "json_object"}}},
        "invalid_value",
        "min_tokens",
        "`min_tokens`: an answer that follows a grammar ends with it: leave out `min_tokens`",
    ),
    (
        {"job": {"priority": 11}},
        "invalid_value",
        "job.priority",
        "`job.priority`: input should be less than or equal to 9",
    ),
    ({"input": []}, "invalid_value", "input", "`input`: array should have at least 1 item, not 0"),
    (
        {"input": [], "previous_response_id": "resp_1"},
        "invalid_value",
        "input",
        "`input`: array should have at least 1 item, not 0",
    ),
    (
        form(type="xml"),
        "unsupported_parameter",
        "text.format.type",
        "`text.format.type` 'xml' is not supported: text, json_object, json_schema",
    ),
    (form(type="json_schema", name="n"), "invalid_value", "text.format.schema", "`text.format.schema` is required"),
    (
        form(type="json_schema", schema={"a": "x" * 70_000}),
        "invalid_json_schema",
        "text.format.schema",
        "`text.format.schema` has 70009 characters as text, and 1 to 65536 are accepted",
    ),
    (said(role=None), "invalid_value", "input[0].role", "`input[0].role` is required"),
    (
        said(role="narrator"),
        "unsupported_parameter",
        "input[0].role",
        "`input[0].role` 'narrator' is not supported: system, developer, user, assistant",
    ),
    (said(content=None), "invalid_value", "input[0].content", "`input[0].content` is required"),
    (
        said({"type": "input_text", "text": "a"}, {"type": "input_audio"}),
        "unsupported_parameter",
        "input[0].content[1].type",
        "`input[0].content[1].type` 'input_audio' is not supported: text alone",
    ),
    (
        said({"type": "input_text", "text": "a"}, {"type": "input_image", "detail": "low"}),
        "invalid_value",
        "input[0].content[1].image_url",
        "`input[0].content[1].image_url` is required, or a `file_id`",
    ),
    (
        said({"type": "input_image", "file_id": "f"}, {"type": "input_text"}),
        "unsupported_parameter",
        "input[0].content[1].type",
        "`input[0].content[1].type` 'input_text' is not supported: text alone",
    ),
    (
        said({"type": "input_image", "image_url": "https://x.example/a.png"}, role="assistant"),
        "unsupported_parameter",
        "input[0].content[0].type",
        "`input[0].content[0].type` 'input_image' is not supported: text alone; images stand in messages of the user",
    ),
    ({"input": [CALL | {"call_id": None}]}, "invalid_value", "input[0].call_id", "`input[0].call_id` is required"),
    ({"input": [CALL | {"name": None}]}, "invalid_value", "input[0].name", "`input[0].name` is required"),
    (
        {"input": [CALL | {"arguments": None}]},
        "invalid_value",
        "input[0].arguments",
        "`input[0].arguments` is required",
    ),
    (
        {"input": [{"type": "function_call_output", "output": "1"}]},
        "invalid_value",
        "input[0].call_id",
        "`input[0].call_id` is required",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "c1"}]},
        "invalid_value",
        "input[0].output",
        "`input[0].output` is required",
    ),
    (
        {"input": [{"type": "mcp_approval_response", "approval_request_id": "a"}]},
        "invalid_value",
        "input[0].approve",
        "`input[0].approve` is required",
    ),
    (
        {"input": [{"type": "mcp_list_tools"}]},
        "invalid_value",
        "input[0].server_label",
        "`input[0].server_label` is required",
    ),
    (
        {"input": [MCP | {"server_label": None}]},
        "invalid_value",
        "input[0].server_label",
        "`input[0].server_label` is required",
    ),
    ({"input": [MCP | {"name": None}]}, "invalid_value", "input[0].name", "`input[0].name` is required"),
    ({"input": [MCP | {"arguments": None}]}, "invalid_value", "input[0].arguments", "`input[0].arguments` is required"),
    (
        {"input": [MCP | {"output": [{"type": "input_image"}]}]},
        "unsupported_parameter",
        "input[0].output[0].type",
        "`input[0].output[0].type` 'input_image' is not supported: text alone; images stand in messages of the user",
    ),
    (
        {"input": [{"type": "computer_call"}]},
        "unsupported_parameter",
        "input[0].type",
        "`input[0].type` 'computer_call' is not supported: message, function_call, "
        "function_call_output, reasoning, file_search_call, mcp_call, mcp_list_tools, mcp_approval_response",
    ),
    (
        {"input": [{"type": "reasoning", "summary": [{"type": "image"}]}]},
        "unsupported_parameter",
        "input[0].summary[0].type",
        "`input[0].summary[0].type` 'image' is not supported: text alone; images stand in messages of the user",
    ),
    (
        {"tools": [WEB]},
        "unsupported_parameter",
        "tools[0].type",
        "`tools[0].type` 'web_search_preview' is not supported: the web is not searched here, it is "
        "left out beside functions and `file_search` only",
    ),
    (
        {"tools": [FUNCTION, {"type": "computer_use"}]},
        "unsupported_parameter",
        "tools[1].type",
        "`tools[1].type` 'computer_use' is not supported: `file_search` and `mcp` are, and functions, "
        "which the caller runs",
    ),
    (
        {"tools": [{"type": "namespace", "name": "sky", "tools": [FUNCTION, WEB]}]},
        "unsupported_parameter",
        "tools[0].tools[1].type",
        "`tools[0].tools[1].type` 'web_search_preview' is not supported: `file_search` and `mcp` are, "
        "and functions, which the caller runs",
    ),
    (
        {"tools": [{"type": "namespace", "tools": [FUNCTION]}]},
        "invalid_value",
        "tools[0].name",
        "`tools[0].name` is required",
    ),
    (
        {"tools": [FUNCTION, FUNCTION]},
        "invalid_value",
        "tools",
        "`tools`: two functions are named f: each needs a name of its own",
    ),
    (
        {"tools": [FUNCTION | {"name": "a b"}]},
        "invalid_value",
        "tools[0].name",
        "`tools[0].name`: string should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "web_search"}},
        "unsupported_parameter",
        "tool_choice",
        "`tool_choice` is a mode or a function: other tools are not supported",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}},
        "invalid_value",
        "tool_choice",
        "`tool_choice`: no tool is named g",
    ),
    (
        {"tools": [FUNCTION], "tool_choice": "sometimes"},
        "invalid_value",
        "tool_choice",
        '`tool_choice`: it is one of `none`, `auto`, `required` or `{"type": "function", "function": {"name": ...}}`',
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice", "`tool_choice` needs `tools`"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "invalid_value", "tool_choice", "`tool_choice` needs `tools`"),
    (
        {"tools": [SEARCH, SEARCH]},
        "unsupported_parameter",
        "tools[1]",
        "one `file_search` is supported: name all stores in it",
    ),
    (
        {"tools": [SEARCH, {"type": "namespace", "name": "sky", "tools": [FUNCTION]}]},
        "unsupported_parameter",
        "tools[1]",
        "`file_search` and functions do not go together in one response: send them in two",
    ),
    (
        {"tools": [SEARCH | {"max_num_results": 51}]},
        "invalid_value",
        "tools[0].max_num_results",
        "`max_num_results`: input should be less than or equal to 50",
    ),
    (
        {"tools": [SEARCH | {"more": 1}]},
        "unsupported_parameter",
        "tools[0].more",
        "`more` is not a field that is known here: remove it or correct its name",
    ),
]


def test_an_error_names_the_field_of_the_request(subtests: pytest.Subtests) -> None:
    for changes, code, param, text in REFUSED:
        with subtests.test(text):
            with pytest.raises(InvalidRequest) as raised:
                prepared(changes)
            assert (raised.value.code, raised.value.param, raised.value.message) == (code, param, text)
