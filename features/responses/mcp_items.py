"""Items of a response for tools that the server calls, and the turns before its answer. No I/O but ``with_turns``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.features.flows.task import error_text
from headrace.features.flows.tools.builtin import FILE_SEARCH
from headrace.features.responses.mcp_tools import label_of
from headrace.features.responses.stored_responses import StoredResponse
from headrace.producer_api.streaming.turns import CallEnded, TurnCall, has_turns, turns_of
from headrace.store.db.database import Database
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.step_payload import FAULT
from headrace.store.schema.job_states import JobState

Item = dict[str, Any]


def with_turns(db: Database, job: Job, row: StoredResponse) -> StoredResponse:
    """Return the row of a response with the turns before its answer, if it has an answer and had such. Blocks."""
    return replace(row, turns=turns_of(db, job)) if job.output is not None and has_turns(job) else row


def shown_list(server: Mapping[str, Any]) -> Item:
    """Return the fields of an ``mcp_list_tools``."""
    told = [{name: value for name, value in tool.items() if name != "function"} for tool in server["tools"]]
    return {"server_label": server["server_label"], "tools": told, "error": None}


def begun_call(call: TurnCall, listed: Sequence[Mapping[str, Any]]) -> Item:
    """Return the fields of an ``mcp_call`` that has begun."""
    label, name = label_of(call.name, listed)
    fields = {"server_label": label, "name": name, "arguments": call.arguments, "output": None, "error": None}
    return {**fields, "status": "in_progress", "approval_request_id": None}


def last_calls(job: Job, most: int, listed: Sequence[Mapping[str, Any]]) -> tuple[list[Item], list[Item]]:
    """Return the calls of the last turn of a job that has ended at them: those that failed, and those asked for.

    They are fields of an ``mcp_call`` and of an ``mcp_approval_request``. ``most``: the calls that the job had left.
    If one call of the turn needs an approval, no call of it was made, so all are asked for. One with a fault has
    failed before that. A search in files needs no approval: it is left out, and the model may search again.
    """
    calls = ((job.output or {}).get("tool_calls") or ()) if job.state is JobState.SUCCEEDED else ()
    failed: list[Item] = []
    asked: list[Item] = []
    for call in calls[:most]:
        function = call["function"]
        name, arguments = function["name"], function["arguments"]
        if FAULT in call:
            made = TurnCall(0, call["id"], "", name, arguments)
            failed.append(begun_call(made, listed) | call_result(CallEnded(made, error_text(call[FAULT]), True)))
        elif name != FILE_SEARCH:
            label, own_name = label_of(name, listed)
            asked.append({"server_label": label, "name": own_name, "arguments": arguments})
    return failed, asked


def call_result(ended: CallEnded) -> Item:
    """Return the fields that change when a call has returned."""
    if not ended.is_error:
        return {"output": ended.text, "status": "completed"}
    error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": ended.text}]}
    return {"error": error, "status": "failed"}
