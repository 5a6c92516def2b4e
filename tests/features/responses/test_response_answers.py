"""Responses as clients see them, whole and as events, field by field. No server."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.responses.response_answer import initial_object, response_object, status_of
from headrace.features.responses.response_events import ResponseEventBuilder
from headrace.features.responses.response_output import output_items, response_of
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.streaming.turns import CallEnded, TurnCall, TurnEnded
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import FLOW_TASK, JobState
from tests.producer_api.answered_jobs import CALL, CALLS, THINKS, USAGE, ended, entry, job_of
from tests.producer_api.expected_events import expected_events

LISTED = [{"server_label": "S", "tools": [{"name": "find", "function": "s__find"}, {"name": "f", "function": "s__f"}]}]
TURNS: dict[str, Any] = {
    "tool_style": "json",
    "calls": {"functions": ["s__find"], "left": 2},
    "steps": [{"name": "answer", "server_tools": {"names": ["s"]}}],
}
CALLED = '{"name": "s__find", "arguments": {}}'


def row_of(*, is_background: bool = False, **request: Any) -> StoredResponse:
    return StoredResponse("job_1", None, is_stored=True, is_background=is_background, request=request)


def shown(events: Any) -> list[Any]:
    """The events without the response, whose status is shown instead."""
    return [{**one, "response": one["response"]["status"]} if "response" in one else one for one in events]


def flow_of(text: str, payload: dict[str, Any], **output: Any) -> Job:
    return replace(job_of(text, payload, **output), task=FLOW_TASK)


FIELDS_OF_EVERY_STATE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1795564800,
    "background": False,
    "model": "tiny@1",
    "metadata": {"a": "b"},
    "previous_response_id": "resp_0",
    "store": True,
    "user": "ann",
    "temperature": 0.2,
    "top_p": 0.5,
    "truncated": {"messages": 1},
    "template": {"id": "p"},
    "error": None,
    "incomplete_details": None,
}


def test_a_whole_response() -> None:
    payload = {"sampling": {"temperature": 0.2, "seed": 1}, "truncated": {"messages": 1}, "template": {"id": "p"}}
    job = replace(job_of("Hi.", payload), metadata={"a": "b"})
    request = {"user": "ann", "temperature": 1.0, "top_p": 0.5, "listed": [], "answered": ["mcpr_1"]}
    row = StoredResponse("job_1", "resp_0", is_stored=True, is_background=False, request=request)
    assert response_object(job, row) == FIELDS_OF_EVERY_STATE | {
        "status": "completed",
        "completed_at": 1795564800,
        "output": [
            {
                "id": "msg_1",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
            }
        ],
        "usage": {
            "input_tokens": 5,
            "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 8,
        },
        "job": {"id": "job_1", "version": 1, "status": "succeeded", "attempt": 1, "error": None},
    }
    assert initial_object(job, row, "queued") == FIELDS_OF_EVERY_STATE | {
        "status": "queued",
        "completed_at": None,
        "output": [],
        "usage": None,
    }


@pytest.mark.parametrize(
    ("changes", "is_background", "status"),
    [
        ({"state": JobState.QUEUED, "started_at": None}, True, "queued"),
        ({"state": JobState.QUEUED, "started_at": None}, False, "in_progress"),
        ({"state": JobState.QUEUED}, True, "in_progress"),
        ({"state": JobState.RUNNING}, True, "in_progress"),
        ({"state": JobState.CANCELLED}, True, "cancelled"),
        ({"state": JobState.EXPIRED}, True, "failed"),
        ({"state": JobState.FAILED}, True, "failed"),
        ({"output": {"text": "x", "finish_reason": "length"}}, True, "incomplete"),
        ({}, False, "completed"),
    ],
)
def test_a_job_has_this_status_as_a_response(changes: dict[str, Any], is_background: bool, status: str) -> None:
    job, row = replace(ended("x"), **changes), row_of(is_background=is_background)
    assert status_of(job, row) == response_object(job, row)["status"] == status


def test_an_error_has_a_code_of_openai() -> None:
    found = [
        response_object(ended("x", JobState.FAILED, error=error), row_of())["error"]
        for error in (
            {"code": "policy_blocked_input", "message": "no"},
            {"code": "policy_blocked_output", "message": "no"},
            {"code": "out_of_memory", "message": ""},
            None,
        )
    ]
    assert found == [
        {"code": "invalid_prompt", "message": "no"},
        {"code": "invalid_prompt", "message": "no"},
        {"code": "server_error", "message": "the job was failed"},
        {"code": "server_error", "message": "the job was failed"},
    ]


def test_the_events_of_an_answer_with_logprobs_and_citations() -> None:
    expected = expected_events(__file__, "cited_answer")
    cited = [{"type": "file_citation", "index": 0}, {"type": "file_citation", "index": 2}]
    told = [entry("Hi"), entry(" all")]
    job = job_of("Hi all", logprobs=told, annotations=cited)
    builder = ResponseEventBuilder(job, row_of())
    assert shown(builder.opening()) == expected["opening"]
    assert [*builder.add_text("Hi", told[:1])] == []
    assert [*builder.add_text(" all", told[1:])] == expected["text"]
    assert shown(builder.end(job, is_text_complete=True)) == expected["end"]


@pytest.mark.parametrize("summary", [None, "detailed"])
def test_the_events_of_reasoning(summary: str | None) -> None:
    job = job_of("<t>hm</t>Yes", THINKS)
    builder = ResponseEventBuilder(job, row_of(reasoning={"summary": summary}))
    list(builder.opening())
    part, text = ("summary_part", "summary_text") if summary else ("content_part", "text")
    prefix = "response.reasoning_" if summary else "response."
    kind = f"{prefix}summary_part" if summary else "response.content_part"
    place = {"item_id": "rs_1", "output_index": 0, "summary_index" if summary else "content_index": 0}
    typed = {"type": "summary_text" if summary else "reasoning_text"}
    item = {"id": "rs_1", "type": "reasoning", "encrypted_content": None, "summary": [], "content": []}
    events = [*builder.add_text("<t>hm</t>Yes")]
    assert events[:6] == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": {**item, "status": "in_progress"},
        },
        {"type": f"{kind}.added", "sequence_number": 3, **place, "part": {**typed, "text": ""}},
        {"type": f"response.reasoning_{text}.delta", "sequence_number": 4, **place, "delta": "hm"},
        {"type": f"response.reasoning_{text}.done", "sequence_number": 5, **place, "text": "hm"},
        {"type": f"{kind}.done", "sequence_number": 6, **place, "part": {**typed, "text": "hm"}},
        {
            "type": "response.output_item.done",
            "sequence_number": 7,
            "output_index": 0,
            "item": {
                **item,
                "summary" if summary else "content": [{**typed, "text": "hm"}],
                "status": "completed",
            },
        },
    ]
    assert part in kind
    assert events[6]["item"]["id"] == "msg_1_1"


def test_the_events_of_a_call_of_a_namespace() -> None:
    tools = [{"type": "function", "name": "sky"}, {"type": "namespace", "name": "sky", "tools": []}]
    said = 'Hm\n{"name": "sky__f", "arguments": {"a": 1}}'
    payload = CALLS | {"input": CALLS["input"] | {"tools": [{"function": {"name": "sky__f"}}]}}
    job = job_of(said, payload, "tool_calls")
    builder = ResponseEventBuilder(job, row_of(tools=tools))
    list(builder.opening())
    list(builder.add_text(said))
    assert shown(builder.end(job, is_text_complete=True))[-4:-1] == [
        {
            "type": "response.function_call_arguments.delta",
            "sequence_number": 12,
            "item_id": "fc_1_1",
            "output_index": 1,
            "delta": "}",
        },
        {
            "type": "response.function_call_arguments.done",
            "sequence_number": 13,
            "item_id": "fc_1_1",
            "output_index": 1,
            "name": "f",
            "arguments": '{"a": 1}',
        },
        {
            "type": "response.output_item.done",
            "sequence_number": 14,
            "output_index": 1,
            "item": {
                "id": "fc_1_1",
                "type": "function_call",
                "status": "completed",
                "call_id": "call_e1b7ae25762ba392d148ff3f",
                "name": "f",
                "namespace": "sky",
                "arguments": '{"a": 1}',
            },
        },
    ]
    cut = job_of(said, payload, "length")
    assert [(one["type"], one["status"]) for one in output_items(cut, row_of(tools=tools))] == [
        ("message", "completed"),
        ("function_call", "incomplete"),
    ]
    begun = job_of('<tool_call>\n{"na', payload | {"tool_style": "hermes"}, "length")
    ((message,),) = [one["content"] for one in output_items(begun, row_of(tools=tools))]
    assert message["text"] == "", "the begin of a call is no text of the answer"


def searching(**output: Any) -> Job:
    turn = {"role": "user", "content": "Which?"}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "?"}, turn]
    step = {"name": "answer", "retrieval": {"vector_store_ids": ["vs_1"]}, "input": {"messages": turns}}
    return flow_of("Oats.", {"steps": [{"name": "other"}, step]}, **output)


def test_the_events_of_a_search() -> None:
    expected = expected_events(__file__, "file_search")
    job = searching()
    passage = {"file_id": "f", "filename": "a.md", "score": 0.5, "text": "Oats", "attributes": {"a": 1}}
    builder = ResponseEventBuilder(job, row_of())
    assert shown(builder.opening()) == expected["opening"]
    builder.set_found([{**passage, "place": {"page": 2}, "more": 1}])
    assert [*builder.searched(), *builder.searched()] == expected["searched"]
    events = [*builder.add_text("Oats."), *builder.end(job, is_text_complete=True)]
    assert [(one["sequence_number"], one.get("output_index")) for one in events] == [
        *((number, 1) for number in range(7, 14)),
        (14, None),
    ]
    assert events[-1]["response"]["output"][0]["results"] == [
        {"file_id": "f", "filename": "a.md", "score": 0.5, "text": "Oats", "attributes": None, "place": {"page": 2}}
    ]


def test_the_events_of_calls_of_the_server() -> None:
    expected = expected_events(__file__, "server_calls")
    job = flow_of("Seven.", TURNS)
    builder = ResponseEventBuilder(job, row_of(listed=LISTED))
    assert shown(builder.opening()) == expected["opening"]
    one, two = TurnCall(0, "call_0", "job_2", "s__find", "{}"), TurnCall(1, "call_1", "job_3", "own", "[]")
    turn = TurnEnded({"text": f"Hm {CALLED}", "tool_calls": [{}, {}]}, (one, two))
    list(builder.add_text("Hm "))
    assert shown(builder.turn_ended(turn)) == expected["turn_ended"]
    assert shown(builder.call_ended(CallEnded(two, "no", True))) == expected["failed_call_ended"]
    assert shown(builder.call_ended(CallEnded(one, "7", False))) == expected["call_ended"]
    events = [*builder.add_text("Seven."), *builder.end(job, is_text_complete=True)]
    assert events[-1]["response"]["output"] == expected["output"]


def test_the_last_calls_are_asked_for_or_have_failed() -> None:
    expected = expected_events(__file__, "last_calls")
    names = ("s__find", "file_search", "s__f", "own")
    calls: list[dict[str, Any]] = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in names]
    calls[2]["fault"] = "the arguments do not match"
    job = flow_of(CALLED, TURNS | {"calls": {"functions": ["s__find"], "left": 3}}, tool_calls=calls)
    builder = ResponseEventBuilder(job, row_of(listed=LISTED))
    list(builder.opening())
    list(builder.add_text(CALLED))
    assert shown(builder.end(job, is_text_complete=True)) == expected["end"]


def test_a_response_that_begins_with_calls_says_which_approvals_they_have() -> None:
    given = {"task": "call_tool", "input": {"tool": "s__find", "arguments": "{}"}}
    steps = [{"name": f"call_{number}", **given} for number in (1, 2)]
    job = flow_of("Seven.", TURNS | {"steps": [*steps, *TURNS["steps"]]})
    second = CallEnded(TurnCall(1, "", "", "s__find", "{}"), "7", False)
    row = replace(row_of(answered=["mcpr_1", "mcpr_2"]), turns=(second,))
    assert output_items(job, row) == [
        {
            "id": "mcp_1",
            "type": "mcp_call",
            "server_label": "headrace",
            "name": "s__find",
            "arguments": "{}",
            "output": None,
            "error": None,
            "status": "in_progress",
            "approval_request_id": "mcpr_1",
        },
        {
            "id": "mcp_1_1",
            "type": "mcp_call",
            "server_label": "headrace",
            "name": "s__find",
            "arguments": "{}",
            "output": "7",
            "error": None,
            "status": "completed",
            "approval_request_id": "mcpr_2",
        },
        {
            "id": "msg_1_2",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Seven.", "annotations": []}],
        },
    ]


def test_an_item_belongs_to_a_response() -> None:
    number = "0123456789abcdef" * 2
    assert response_of(f"msg_{number}") == response_of(f"mcpl_{number}_12") == f"resp_{number}"
    others = ("m_#", "msgss_#", "msg_#_", "msg_#0", "resp #", "msg_#_1x", "MSG_#")
    assert {response_of(other.replace("#", number)) for other in others} == {None}


def test_what_ends_without_text_has_no_items() -> None:
    queued = ended("x", JobState.CANCELLED, output=None, started_at=None, usage=None)
    builder = ResponseEventBuilder(queued, row_of(is_background=True))
    events = [*builder.opening(), *builder.end(queued, is_text_complete=True)]
    assert shown(events) == [
        {"type": "response.created", "sequence_number": 0, "response": "queued"},
        {"type": "response.queued", "sequence_number": 1, "response": "queued"},
        {"type": "response.cancelled", "sequence_number": 2, "response": "cancelled"},
    ]
    assert output_items(queued) == []
    stopped = replace(searching(), state=JobState.CANCELLED, output=None)
    builder = ResponseEventBuilder(stopped, row_of())
    list(builder.opening())
    assert [one["type"] for one in builder.end(stopped, is_text_complete=True)] == ["response.cancelled"]
    half = ended("half", JobState.CANCELLED, "cancelled")
    builder = ResponseEventBuilder(half, row_of())
    list(builder.opening())
    list(builder.add_text("half"))
    assert [one["type"] for one in builder.end(half, is_text_complete=False)] == ["response.cancelled"]
    assert [one["status"] for one in output_items(job_of("half", None, "length"))] == ["incomplete"]
    assert output_items(job_of("", usage=USAGE, calls=CALL)) == [
        {
            "id": "msg_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "", "annotations": []}],
        }
    ]
