"""Prepares a step with ``server_tools``: the model gets registered tools as functions; their calls become steps.

The tools are looked up here as the tenant, so row-level security binds the look-up; the worker's names the tenant too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from headrace.features.flows.retrieval_steps import question_search
from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.builtin import BUILT_IN, FILE_SEARCH
from headrace.features.flows.tools.tool_definition import McpServer
from headrace.features.flows.tools.tools import StoredTool
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.submission.submission_hook import SubmissionParts
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.jobs.answered_calls import AnsweredCall, first_steps
from headrace.store.payloads.conversation import MAX_TOOLS
from headrace.store.payloads.references import MARK
from headrace.store.payloads.retrieval import Retrieval
from headrace.store.payloads.server_tools import SEPARATOR, ServerTools, server_of
from headrace.store.payloads.step_payload import SEARCH, TOOLS, TOOLS_WITH_APPROVAL
from headrace.store.payloads.tool_approval import named_in, needs_approval
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.tasks.flow import FlowRequest, FlowStepBody
from headrace.store.tenants.api_keys import Principal

FIELD = "server_tools"
_SEARCH_FIELD = f"{FIELD}.{FILE_SEARCH}"


def server_tools_of(body: FlowStepBody) -> ServerTools | None:
    """Return the checked ``server_tools`` of a step, None if it has none. Raises InvalidRequest."""
    given = body.own_fields.get(FIELD)
    if given is None:
        return None
    try:
        found = ServerTools.model_validate(given)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False), inside=FIELD) from None
    if found.file_search is not None:
        question_search(_SEARCH_FIELD).check(found.file_search, _SEARCH_FIELD)
    if body.own_fields.get("n") not in (None, 1):
        raise InvalidRequest(f"`{FIELD}` goes with one answer: leave out `n`", param="n")
    if body.own_fields.get("retrieval") is not None:
        raise InvalidRequest(f"`{FIELD}` and `retrieval` do not go together in one step", param="retrieval")
    for name in ("tools", "tool_choice"):
        if body.input.get(name) is not None:
            raise InvalidRequest(f"`{FIELD}` and `{name}` do not go together in one step", param=f"input.{name}")
    if body.input.get("messages") is None:
        raise InvalidRequest(f"`{FIELD}` goes with `messages`: a raw prompt has no place for tools", param=FIELD)
    return found


def check_tools(steps: Sequence[FlowStepBody], answer: FlowStepBody, most_steps: int) -> None:
    """Raise InvalidRequest for tools of a step without the answer, or for more calls than steps are accepted."""
    for index, step in enumerate(steps):
        wanted = server_tools_of(step)
        if wanted is None:
            continue
        if step is not answer:
            raise InvalidRequest(
                f"only the step with the answer may have `{FIELD}`: other steps would get the text before the calls",
                param=f"steps[{index}].{FIELD}",
            )
        most = (most_steps - len(steps)) // 2
        if wanted.max_tool_calls > most:
            raise InvalidRequest(
                f"each call may take two steps, and a job has at most {most_steps} (HEADRACE_MAX_STEPS): "
                f"at most {most} calls are accepted here",
                param=f"steps[{index}].{FIELD}.max_tool_calls",
            )


def with_tools(
    parts: SubmissionParts, principal: Principal, body: FlowStepBody, wanted: ServerTools, *, ends: bool = False
) -> tuple[FlowStepBody, dict[str, Any]]:
    """Return the step with its tools as functions, and what may follow it. Blocks.

    ``ends``: the job ends at a call that needs an approval, instead of waiting for it. Raises InvalidRequest, NotFound
    if a tool or the model that makes calls is not there, Forbidden.
    """
    servers = {server for server in map(server_of, wanted.names) if server}
    stored = tools.named(parts.db, principal.tenant_id, [*servers, *wanted.names])
    told = _functions(stored, wanted)
    version = _caller(parts, principal, wanted)
    functions = [{"type": "function", "function": {"name": name, **function}} for name, function in told.items()]
    given = {**body.input, "tools": functions}
    if not wanted.max_tool_calls:
        given["tool_choice"] = "none"
    elif wanted.tool_choice != "auto":
        given["tool_choice"] = wanted.tool_choice
    then = {"kind": TOOLS, "calls_left": wanted.max_tool_calls, "model": version.model, "version": version.version}
    if wanted.file_search is not None:
        then[SEARCH] = _search(parts, principal, wanted.file_search)
    if waiting := [function for function in told if _needs_approval(stored, wanted, function)]:
        within_s = wanted.approval_timeout_ms / 1000
        asks = {"names": waiting, "within_s": within_s} | ({"ends": True} if ends else {})
        then |= {"kind": TOOLS_WITH_APPROVAL, "approval": asks}
    return body.model_copy(update={"input": given}), then


def with_answered_calls(
    parts: SubmissionParts, principal: Principal, request: FlowRequest, answered: Sequence[AnsweredCall]
) -> FlowRequest:
    """Return the job of one step with the calls of a response before it as its first steps. Blocks.

    The results of the calls stand in the turns of the tools. Calls that were approved are calls of this job too, so
    they count for its limit. Raises as ``with_tools``.
    """
    (step,) = request.steps
    wanted = server_tools_of(step)
    if wanted is None or not answered:
        return request
    version = _caller(parts, principal, wanted)
    model = queue_name(version.model, version.version)
    names = {call.approval_id: name for call, name in zip(answered, first_steps(len(answered)), strict=True)}
    functions = {call.approval_id: call.function for call in answered}
    messages = [_answered_turn(turn, names, functions) for turn in step.input["messages"]]
    answer = {
        **step.model_dump(mode="json", exclude_unset=True),
        "input": {**step.input, "messages": messages},
        FIELD: _limited(wanted, answered, parts.settings.max_steps),
        "needs": [*names.values()],
    }
    made = [
        {
            "name": names[call.approval_id],
            "task": CALL_TOOL.name,
            "model": model,
            "input": _call_input(call),
        }
        for call in answered
    ]
    return request.model_copy(update={"steps": tuple(map(FlowStepBody.model_validate, [answer, *made]))})


def _limited(wanted: ServerTools, answered: Sequence[AnsweredCall], most_steps: int) -> dict[str, Any]:
    """Return ``server_tools`` with the calls that are left behind those that were approved, as they may be sent.

    Raises InvalidRequest if more calls were approved than the job may make.
    """
    approved, most = sum(call.refusal is None for call in answered), wanted.max_tool_calls
    if approved > most:
        message = f"{approved} calls were approved, and `max_tool_calls` is {most}: raise it, or refuse some of them"
        raise InvalidRequest(message, param=f"{FIELD}.max_tool_calls")
    left = max(0, min(most - approved, (most_steps - 1 - len(answered)) // 2))
    limits: dict[str, Any] = {"max_tool_calls": left} | ({} if left else {"tool_choice": "auto"})
    return wanted.model_copy(update=limits).model_dump(mode="json", exclude_none=True, exclude_unset=True)


def _call_input(call: AnsweredCall) -> dict[str, Any]:
    """Return the call. A refusal stands in it, so that no job which is made from this one makes the call."""
    made = {"tool": call.function, "arguments": call.arguments}
    return made if call.refusal is None else {**made, "refusal": call.refusal}


def _answered_turn(
    turn: Mapping[str, Any], names: Mapping[str, str], functions: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return a turn with the functions of the calls that were answered, or with the place for the result of one."""
    if turn.get("tool_call_id") in names:
        return {**turn, "content": {MARK: f"{names[turn['tool_call_id']]}.output.text"}}
    if functions.keys().isdisjoint(call["id"] for call in turn.get("tool_calls") or ()):
        return turn
    made = [
        {**call, "function": {**call["function"], "name": functions.get(call["id"], call["function"]["name"])}}
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": made}


def _caller(parts: SubmissionParts, principal: Principal, wanted: ServerTools) -> ModelVersion:
    """Return the version that makes the calls."""
    name = wanted.model or _only_model(parts, principal)
    principal.check_model(name)
    version = parts.catalog.resolve(name)
    if version.task != CALL_TOOL.name:
        raise InvalidRequest(f"the model {version.model} {version.spec.purpose}", param=f"{FIELD}.model")
    return version


def _search(parts: SubmissionParts, principal: Principal, wanted: Retrieval) -> dict[str, Any]:
    """Return what the steps need to know that search: the version that embeds, its fields, and what is searched."""
    version, fields = question_search(_SEARCH_FIELD).embedding_of(parts, principal.tenant_id, wanted, _SEARCH_FIELD)
    principal.check_model(queue_name(version.model, version.version))
    return {
        "model": version.model,
        "version": version.version,
        "fields": fields,
        "retrieval": wanted.model_dump(mode="json", exclude_none=True),
    }


def without_tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of such a step as it was sent."""
    return {name: value for name, value in given.items() if name not in ("tools", "tool_choice")}


def _functions(stored: Mapping[str, StoredTool], wanted: ServerTools) -> dict[str, Mapping[str, Any]]:
    """Return what the model is told: a tool is one function, a server of MCP one for each of its tools."""
    told: dict[str, Mapping[str, Any]] = {}
    for number, name in enumerate(wanted.names):
        found = _told(stored, name)
        if not found:
            raise NotFound(f"no tool is named {name}", param=f"{FIELD}.names[{number}]")
        told |= found
    if len(told) > MAX_TOOLS:
        raise InvalidRequest(
            f"these are {len(told)} functions, and a model gets at most {MAX_TOOLS}: name single tools of a server, "
            f"as server{SEPARATOR}tool",
            param=f"{FIELD}.names",
        )
    # A search reads the tenant's own stores, and waits for nobody.
    known = {*told, *(server for server in map(server_of, told) if server)} - {FILE_SEARCH}
    for name in sorted(named_in(wanted.require_approval) - known):
        raise InvalidRequest(
            f"the model gets no tool {name}: it gets {', '.join(told)[:500]}", param=f"{FIELD}.require_approval"
        )
    return told


def _needs_approval(stored: Mapping[str, StoredTool], wanted: ServerTools, function: str) -> bool:
    """Return True if calls of a function wait: the request may only add to what the tool says."""
    if function == FILE_SEARCH:
        return False
    server = server_of(function)
    if needs_approval(wanted.require_approval, function, *(() if server is None else (server,))):
        return True
    owner = stored.get(server or "") or stored.get(function)
    return owner is not None and owner.definition.needs_approval(function)


def _told(stored: Mapping[str, StoredTool], name: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the functions that a name stands for."""
    if name in BUILT_IN:
        return {name: BUILT_IN[name]}
    server = stored.get(server_of(name) or "")
    if server is not None and isinstance(server.definition, McpServer):
        return {one: what for one, what in server.definition.functions(server.name).items() if one == name}
    return stored[name].definition.functions(name) if name in stored else {}


def _only_model(parts: SubmissionParts, principal: Principal) -> str:
    names = [one.name for one in models.list_models(parts.db) if one.task == CALL_TOOL.name]
    if principal.models is not None:
        names = [name for name in names if name in principal.models]
    if len(names) == 1:
        return names[0]
    if names:
        listed = ", ".join(names[:10])
        raise InvalidRequest(f"several models make calls ({listed}): name one", param=f"{FIELD}.model")
    raise InvalidRequest(
        f"no model here makes calls: let the operator run `headrace register tools --task {CALL_TOOL.name}` and "
        "`headrace worker --model tools`",
        param=FIELD,
    )
