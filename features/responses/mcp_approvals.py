"""Approvals of calls in the Responses API: which calls need one, and the answers that a request brings. No I/O.

response                                      next response, with ``previous_response_id``
… mcp_approval_request │ completed     ──▶    mcp_approval_response ──▶ mcp_call, made or refused │ … the answer
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from headrace.features.flows.tools.builtin import FILE_SEARCH
from headrace.features.responses.answered_calls import ITEM
from headrace.features.responses.response_tools import FunctionTool
from headrace.producer_api.http.job_options import unsupported
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.payloads.server_tools import ServerTools, server_of
from headrace.store.payloads.tool_approval import ApprovalByName, RequireApproval, named_in, needs_approval

if TYPE_CHECKING:
    from headrace.features.responses.mcp_tools import CalledTools
    from headrace.features.responses.response_request import ResponseRequest

ASKED: Final = "mcp_approval_request"

_RULE: Final[TypeAdapter[RequireApproval]] = TypeAdapter(RequireApproval)

Item = Mapping[str, Any]


def waiting_in(tool: FunctionTool, told: Sequence[Item], param: str) -> list[str]:
    """Return the functions of a server whose calls need an approval. ``told``: its tools, as they are listed.

    Without a rule that is all of them, as OpenAI has it. Raises InvalidRequest.
    """
    where = f"{param}.require_approval"
    try:
        rule = _RULE.validate_python("always" if tool.require_approval is None else tool.require_approval)
    except ValidationError as error:
        complaint = from_validation(error.errors(include_input=False))
        raise InvalidRequest(f"`{where}` is `always`, `never` or by name: {complaint.message}", param=where) from None
    if unknown := sorted(named_in(rule) - {one["name"] for one in told}):
        raise InvalidRequest(f"`{where}` names {unknown[0][:80]}, which is no tool of the server", param=where)
    return [one["function"] for one in told if needs_approval(rule, one["name"])]


def merged_rule(given: ServerTools | None, waiting: Sequence[str], free: Iterable[str]) -> dict[str, Any] | str:
    """Return the rule for all tools of a request. ``given``: its ``server_tools``, whose rule is for these alone.

    ``waiting`` and ``free``: the functions of servers of ``mcp`` that need an approval by their own rule, or do not.
    """
    rule: RequireApproval = "never" if given is None else given.require_approval
    always = [*waiting]
    never: list[str] = []
    if given is not None and rule == "always":
        always += [name for name in given.names if name != FILE_SEARCH]
    if isinstance(rule, ApprovalByName):
        always += () if rule.always is None else rule.always.tool_names
        never += () if rule.never is None else (*rule.never.tool_names, *free)
    by_name = {"always": always, "never": never}
    return {name: {"tool_names": names} for name, names in by_name.items() if names} or "never"


def answered_calls(
    request: "ResponseRequest", answer: Sequence[Item], listed: Sequence[Item], called: "CalledTools | None"
) -> tuple[AnsweredCall, ...]:
    """Return the calls that the request answers, in the order in which the model asked for them.

    ``answer``: the items of the previous response's answer; ``listed``: the tools of its servers. Raises
    InvalidRequest, and NotFound for an approval that the previous response did not ask for.
    """
    asked = {item["id"]: item for item in answer if item["type"] == ASKED}
    given = _answers(request)
    for approval_id, where in given.items():
        if request.previous_response_id is None:
            message = f"`{where}` needs `previous_response_id`: the response that asked for the approval"
            raise InvalidRequest(message, param=where)
        if approval_id not in asked:
            raise NotFound(f"the previous response did not ask for the approval {approval_id[:80]}", param=where)
    if missing := [approval_id for approval_id in asked if approval_id not in given]:
        message = f"the previous response asked for the approval {missing[0]}: answer it with an item `{ITEM}`"
        raise InvalidRequest(message, param="input")
    refusals = _refusals(request)
    calls = tuple(
        AnsweredCall(one, _function_of(item, listed), item["arguments"], refusals.get(one))
        for one, item in asked.items()
    )
    _check_tools(calls, request, called)
    return calls


def _answers(request: "ResponseRequest") -> dict[str, str]:
    """Return the ids of the approvals that the input answers, each with its place."""
    given: dict[str, str] = {}
    for index, item in enumerate(request.input if isinstance(request.input, tuple) else ()):
        if item.type != ITEM:
            continue
        where = f"input[{index}].approval_request_id"
        if item.approval_request_id is None:
            raise InvalidRequest(f"`{where}` is required", param=where)
        if item.approval_request_id in given:
            raise InvalidRequest(f"`{where}` is answered twice", param=where)
        given[item.approval_request_id] = where
    return given


def _refusals(request: "ResponseRequest") -> dict[str | None, str]:
    """Return the reasons of the answers that refuse."""
    items = request.input if isinstance(request.input, tuple) else ()
    return {item.approval_request_id: item.reason or "" for item in items if item.type == ITEM and not item.approve}


def _function_of(asked: Item, listed: Sequence[Item]) -> str:
    """Return the function that the model has called."""
    for server in listed:
        for tool in server["tools"] if server["server_label"] == asked["server_label"] else ():
            if tool["name"] == asked["name"]:
                return str(tool["function"])
    return str(asked["name"])


def _check_tools(calls: Sequence[AnsweredCall], request: "ResponseRequest", called: "CalledTools | None") -> None:
    """Raise InvalidRequest if a call that was answered cannot be made with the tools of the request."""
    known = set() if called is None else {tool["function"] for one in called.listed for tool in one["tools"]}
    known |= set() if request.server_tools is None or called is None else set(request.server_tools.names)
    for call in calls:
        if known.isdisjoint((call.function, server_of(call.function))):
            message = (
                f"the call of {call.function} was answered, and the request has no such tool: send its tools again"
            )
            raise InvalidRequest(message, param="tools")
    if calls and request.prompt is not None:
        raise unsupported("`prompt` does not go with answers to approvals: leave it out", "prompt")
