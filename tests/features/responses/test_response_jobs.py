"""The jobs and rows that requests for a response become, whole. No server."""

from typing import Any

import pytest

from headrace.features.responses.response_items import (
    InputItem,
    images_in,
    message,
    messages_of,
    read_items,
    references_of,
)
from headrace.features.responses.response_request import ResponseContext
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.prompt_reference import FilledTemplate, PromptUse
from tests.features.responses.response_requests import CALL, FUNCTION, MCP, WEB, form, prepared
from tests.producer_api.request_outcomes import fields_set


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


DONE = {"status": "completed"}
PARTS = [
    {"type": "input_text", "text": "a"},
    {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low", "more": 1},
    {"type": "input_text", "text": "b"},
    {"type": "input_image", "file_id": "file_1"},
]
STORED_PARTS = [
    PARTS[0],
    {"type": "input_image", "detail": "low", "image_url": "https://x.example/a.png"},
    PARTS[2],
    {"type": "input_image", "detail": "auto", "file_id": "file_1"},
]
THOUGHT = {
    "summary": [{"type": "summary_text", "text": "Hm"}],
    "content": [{"type": "reasoning_text", "text": "x"}],
}
REFUSAL = [{"type": "output_text", "text": "Well"}, {"type": "refusal", "refusal": ", no."}]
MCP_ERROR = {"content": [{"text": "bad"}, {"text": "luck"}]}
MESSAGE = {"type": "message", **DONE}
OUTPUT = {"type": "function_call_output", "call_id": "c1"}
APPROVAL = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": False}
SENT_AND_STORED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"role": "developer", "content": "In Latin.", "more": 1},
        {**MESSAGE, "role": "developer", "content": [{"type": "input_text", "text": "In Latin."}]},
    ),
    ({"type": "message", "role": "user", "content": PARTS}, {**MESSAGE, "role": "user", "content": STORED_PARTS}),
    ({"type": "reasoning", **THOUGHT}, {"type": "reasoning", **DONE, **THOUGHT}),
    ({"type": "reasoning", "summary": []}, {"type": "reasoning", **DONE, "summary": [], "content": []}),
    ({**CALL, "namespace": "sky", "more": 1}, {**CALL, **DONE, "namespace": "sky"}),
    (CALL, {**CALL, **DONE}),
    ({**OUTPUT, "output": [{"type": "input_text", "text": "2"}, REFUSAL[0]]}, {**OUTPUT, **DONE, "output": "2Well"}),
    (
        {"role": "assistant", "content": REFUSAL},
        {
            **MESSAGE,
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Well, no.", "annotations": []}],
        },
    ),
    (
        {"role": "assistant", "content": None},
        {**MESSAGE, "role": "assistant", "content": [{"type": "output_text", "text": "", "annotations": []}]},
    ),
    (
        {"type": "file_search_call", "queries": ["q"], "results": []},
        {"type": "file_search_call", **DONE, "queries": ["q"], "results": None},
    ),
    (
        {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "x"}]},
        {"type": "mcp_list_tools", **DONE, "server_label": "s", "tools": []},
    ),
    ({**MCP, "output": "7"}, {**MCP, **DONE, "output": "7", "error": None}),
    ({**MCP, "error": MCP_ERROR}, {**MCP, **DONE, "output": None, "error": MCP_ERROR}),
    ({**APPROVAL, "reason": ""}, {**APPROVAL, **DONE, "reason": None}),
]


def test_items_are_stored_with_their_known_fields() -> None:
    found = read_items(items(*(sent for sent, _ in SENT_AND_STORED)), {})
    assert bare(found) == [stored for _, stored in SENT_AND_STORED]
    assert [place for place, _ in images_in(found)] == ["items[1].content[1]", "items[1].content[3]"]


def test_a_reference_stands_for_the_item_of_an_answer() -> None:
    sent = items({"role": "user", "content": "hi"}, {"id": "msg_1"}, {"type": "item_reference", "id": "msg_1"})
    sent += items({"type": "message", "id": "msg_2", "role": "user", "content": "so"})
    assert references_of(sent) == {"msg_1": "input[1].id"}
    stored = {"id": "msg_1", "type": "message"}
    found = read_items(sent, {"msg_1": stored})
    assert found[1:3] == [stored, stored]
    assert found[3]["id"] != "msg_2"
    with pytest.raises(InvalidRequest, match=r"`items\[0\].type` 'item_reference'"):
        read_items(items({"id": "msg_1"}), {}, "items")


SUMMARISED = {
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "m"}],
    "content": [{"type": "reasoning_text", "text": "H"}],
}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "developer", "content": "In Latin."},
    {"role": "user", "content": "a"},
    {"role": "system", "content": "Loud."},
    SUMMARISED,
    {**CALL, "namespace": "sky"},
    {**CALL, "call_id": "c2"},
    {"type": "function_call_output", "call_id": "c1", "output": "1"},
    SUMMARISED,
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "assistant", "content": "d"},
    CALL,
    {"type": "file_search_call", "queries": ["q"]},
    {"type": "mcp_list_tools", "server_label": "s"},
    {**MCP, "server_label": "my s", "name": "find.all", "output": "7"},
    {**MCP, "name": "g" * 80, "error": MCP_ERROR},
]
ASKED_FOR: dict[str, Any] = {"type": "mcp_approval_request", "server_label": "s", "name": "f", "arguments": "{}"}
APPROVALS: list[dict[str, Any]] = [
    {"id": "mcpr_1", **ASKED_FOR},
    {"id": "mcpr_2", **ASKED_FOR},
    {"id": "mcpa_1", "type": "mcp_approval_response"},
    {"id": "mcp_9", **MCP, "approval_request_id": "mcpr_1", "output": ""},
]


def called(**names: str) -> dict[str, Any]:
    """The message of the assistant with a call of each function, by the id of the call."""
    calls = [{"id": key, "function": {"name": name, "arguments": "{}"}} for key, name in names.items()]
    return {"role": "assistant", "tool_calls": calls}


def test_items_become_messages() -> None:
    before = read_items(items(*CONVERSATION), {})
    one, two = before[-2]["id"], before[-1]["id"]
    assert messages_of("Go.", [*before, *APPROVALS, message("user", "so?")]) == [
        {"role": "system", "content": "Go.\n\nIn Latin."},
        {"role": "user", "content": "a"},
        {"role": "system", "content": "Loud."},
        {**called(c1="sky__f", c2="f"), "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {**called(c1="f"), "content": "d"},
        called(**{one: "my_s__find_all"}),
        {"role": "tool", "tool_call_id": one, "content": "7"},
        called(**{two: f"s__{'g' * 61}"}),
        {"role": "tool", "tool_call_id": two, "content": "bad\nluck"},
        called(mcpr_1="s__f", mcpr_2="s__f"),
        {"role": "tool", "tool_call_id": "mcpr_1", "content": "no result"},
        {
            "role": "tool",
            "tool_call_id": "mcpr_2",
            "content": "Error: the call was not approved, so it was not made",
        },
        {"role": "user", "content": "so?"},
    ]
    after = read_items(items(SUMMARISED, MCP, {"role": "assistant", "content": "So."}), {})
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
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
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


SHAPE = {"type": "json_schema", "name": "n", "schema": {"b": 1, "a": 2}, "strict": True}
INNER = {"type": "function", "name": "g", "description": "d"}
EVERY_FIELD: dict[str, Any] = {
    "instructions": "Be brief.",
    "background": True,
    "max_output_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_logprobs": 2,
    "text": {"format": {**SHAPE, "more": 1}, "verbosity": "medium", "more": 1},
    "reasoning": {"effort": "low", "summary": "auto", "max_tokens": 9},
    "tools": [{**FUNCTION, "strict": True, "more": 1}, WEB, {"type": "namespace", "name": "sky", "tools": [INNER]}],
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


def test_every_field_of_a_request_has_its_place_in_the_job() -> None:
    job = fields_set(prepared(EVERY_FIELD).job)
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


def test_every_field_that_is_shown_again_has_its_place_in_the_row() -> None:
    row = prepared(EVERY_FIELD).response
    assert bare(row.input) == [
        {"type": "message", **DONE, "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    ]
    assert (row.previous_id, row.goes_on, row.appends_to, row.answered_calls) == (None, False, None, ())
    assert (row.is_stored, row.is_background) == (True, True)
    nothing = {"description": None, "parameters": None, "strict": None}
    assert row.request == ROW | {
        "instructions": "Be brief.",
        "max_output_tokens": 7,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "detailed"},
        "safety_identifier": "mia",
        "service_tier": "fast",
        "temperature": 0.5,
        "text": {"format": SHAPE, "verbosity": "medium"},
        "tool_choice": {"type": "function", "name": "g"},
        "tools": [
            {**nothing, **FUNCTION, "strict": True},
            {**nothing, **WEB, "name": None},
            {**nothing, "type": "namespace", "name": "sky", "tools": [{**nothing, **INNER}]},
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
        ({"service_tier": "auto"}, {}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_class": "standard"}, {"service_tier": "default"}),
        ({"service_tier": "flex"}, {"service_class": "batch"}, {"service_tier": "flex"}),
        ({"background": True}, {"service_class": "standard"}, {"service_tier": "default"}),
        ({"background": True, "service_tier": "auto"}, {"service_class": "standard"}, {"service_tier": "auto"}),
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
        (
            form(type="json_object", schema={"type": "object", "required": ["a"]}),
            {"sampling": {"grammar": {"kind": "json_schema", "text": '{"type": "object", "required": ["a"]}'}}},
            {"text": {"format": {"type": "json_object", "schema": {"type": "object", "required": ["a"]}}}},
        ),
        ({"tools": [], "tool_choice": "none"}, {}, {"tool_choice": "none"}),
        ({"reasoning": {"generate_summary": "auto"}}, {}, {"reasoning": {"effort": None, "summary": "detailed"}}),
        ({"background_options": {"completion_window": "soonest"}, "messages": None, "ignore_eos": False}, {}, {}),
    ],
)
def test_a_request_becomes_this_job_and_row(changes: dict[str, Any], job: dict[str, Any], row: dict[str, Any]) -> None:
    made = prepared(changes)
    assert (fields_set(made.job), made.response.request) == (PLAIN | job, ROW | row)


def test_a_response_that_goes_on_stores_what_is_new() -> None:
    old, reply = message("user", "old"), message("assistant", "reply")
    request = {"previous_response_id": "resp_1", "store": False, "instructions": "Go."}
    made = prepared(request, ResponseContext((old,), (reply,)))
    assert fields_set(made.job)["input"]["messages"] == [
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
    assert [one["content"] for one in fields_set(again.job)["input"]["messages"]] == ["old", "hi"]


def test_a_filled_prompt_comes_first_and_its_version_is_shown() -> None:
    filled = FilledTemplate("Be brief.", (("user", "{x}"),))
    use = PromptUse(id="pmpt_1", name="greeting", version=3, digest="d" * 64)
    made = prepared({"prompt": {"id": "pmpt_1"}}, ResponseContext(filled=filled, use=use))
    assert [one["content"] for one in fields_set(made.job)["input"]["messages"]] == ["Be brief.", "{x}", "hi"]
    assert fields_set(made.job)["input"]["special_tokens"] == "text"
    assert made.response.request["prompt"]["version"] == "3"
    assert made.response.request["instructions"] == "Be brief."
    own = prepared({"prompt": {"id": "pmpt_1"}, "instructions": ""}, ResponseContext(filled=filled, use=use))
    assert [one["content"] for one in fields_set(own.job)["input"]["messages"]] == ["{x}", "hi"]
