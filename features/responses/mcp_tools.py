"""Tools of the Responses API that the server calls: ``mcp``, and registered tools by name. Blocks for the look-up.

A server of ``mcp`` must be registered by the tenant, with its headers, and is found by its URL or its name. An address
that a request brings is never called: what is called, and with which secrets, is an administrator's decision (0454).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import McpServer
from headrace.features.flows.tools.tools import StoredTool
from headrace.features.responses.mcp_approvals import merged_rule, waiting_in
from headrace.features.responses.response_tools import MCP, FunctionTool
from headrace.producer_api.http.job_options import unsupported
from headrace.producer_api.server.errors import from_validation
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, NotFound
from headrace.store.payloads.server_tools import SEPARATOR, ServerTools

if TYPE_CHECKING:
    from headrace.features.responses.response_request import ResponseRequest

_LOGPROBS: Final = "message.output_text.logprobs"

LISTED: Final = "listed"
"""The field of a stored request that has the tools of its servers. No answer shows it as such."""

OWN_LABEL: Final = "headrace"
"""The ``server_label`` in calls of tools that are no server's."""


@dataclass(frozen=True, slots=True)
class CalledTools:
    """The tools of a response, and what its answer lists of each server: ``server_label`` and ``tools``.

    A listed tool also has ``function``, the name by which the model calls it.
    """

    server_tools: ServerTools
    listed: Sequence[Mapping[str, Any]]


def calls_tools(request: "ResponseRequest") -> bool:
    """Return True if the request has tools that the server calls."""
    has_any = request.server_tools is not None or any(tool.type == MCP for tool in request.tools or ())
    return has_any and request.tool_choice != "none"


def called_by(db: Database, tenant_id: str, request: "ResponseRequest") -> CalledTools | None:
    """Return the tools of the request that the server calls; None if it has none. Blocks.

    Raises InvalidRequest that names the field, and NotFound for a server that is not registered.
    """
    if not calls_tools(request):
        return None
    _check_beside(request)
    wanted = [(f"tools[{place}]", tool) for place, tool in enumerate(request.tools or ()) if tool.type == MCP]
    stored = tools.list_tools(db, tenant_id) if wanted else []
    given = request.server_tools
    names = [] if given is None else [*given.names]
    listed: list[Mapping[str, Any]] = []
    waiting: list[str] = []
    for param, tool in wanted:
        name, server = _registered(stored, tool, param)
        told = _told(name, server, tool, param)
        names += [name] if tool.allowed_tools is None else [one["function"] for one in told]
        listed.append({"server_label": tool.server_label, "tools": told})
        waiting += waiting_in(tool, told, param)
        if waiting and request.store is False:
            where = f"{param}.require_approval"
            raise unsupported("an approval needs a response that is stored: leave out `store`, or send `never`", where)
    fields: dict[str, Any] = {} if given is None else given.model_dump(exclude_none=True)
    free = [tool["function"] for one in listed for tool in one["tools"] if tool["function"] not in waiting]
    rule = merged_rule(given, waiting, free)
    if wanted and rule != fields.get("require_approval", "never"):
        fields["require_approval"] = rule
    if request.max_tool_calls is not None:
        fields["max_tool_calls"] = request.max_tool_calls
    if request.tool_choice == "required":
        fields["tool_choice"] = "required"
    try:
        return CalledTools(ServerTools.model_validate({**fields, "names": names}), listed)
    except ValidationError as error:
        complaint = from_validation(error.errors(include_input=False))
        complaint.param = "max_tool_calls" if complaint.param == "max_tool_calls" else "tools"
        raise complaint from None


def _check_beside(request: "ResponseRequest") -> None:
    """Raise InvalidRequest for what does not go together with tools that the server calls."""
    for place, tool in enumerate(request.tools or ()):
        if tool.type != MCP:
            message = "tools that the server calls go with no others in one response: send them in two"
            raise unsupported(message, f"tools[{place}]")
    if isinstance(request.tool_choice, dict):
        raise unsupported("`tool_choice` is a mode here: none, auto or required", "tool_choice")
    if request.conversation is not None:
        message = "`conversation` does not go with tools that the server calls: send `previous_response_id` instead"
        raise unsupported(message, "conversation")
    if request.top_logprobs or _LOGPROBS in (request.include or ()):
        asked = "top_logprobs" if request.top_logprobs else f"include[{(request.include or ()).index(_LOGPROBS)}]"
        raise unsupported("logprobs do not go with tools that the server calls: leave them out", asked)


def _registered(stored: Sequence[StoredTool], tool: FunctionTool, param: str) -> tuple[str, McpServer]:
    """Return the name of the server that a tool means, and the server."""
    if not tool.server_label:
        raise InvalidRequest(f"`{param}.server_label` is required", param=f"{param}.server_label")
    if tool.connector_id is not None:
        raise unsupported(f"`{param}.connector_id` is not supported: name a server", f"{param}.connector_id")
    for field in ("headers", "authorization"):
        if getattr(tool, field):
            where = f"{param}.{field}"
            message = f"`{where}` is stored with the server: leave it out here, and give it to `headrace tools put`"
            raise unsupported(message, where)
    for one in stored:
        found = one.definition
        is_meant = one.name == tool.server_label if tool.server_url is None else found.url == tool.server_url
        if is_meant and isinstance(found, McpServer):
            return one.name, found
    where = f"{param}.server_label" if tool.server_url is None else f"{param}.server_url"
    raise NotFound(
        f"`{where}` is that of no registered server of MCP: register it with `headrace tools put NAME --mcp URL`, "
        "or POST /v1/tools",
        param=where,
    )


def _told(name: str, server: McpServer, tool: FunctionTool, param: str) -> list[dict[str, Any]]:
    """Return the tools that the model may call, each with the server's own name."""
    taken = _taken(tool, f"{param}.allowed_tools")
    told = [
        {
            "name": one.name,
            "description": one.description,
            "input_schema": one.parameters,
            "annotations": None,
            "function": f"{name}{SEPARATOR}{short}",
        }
        for short, one in server.tools.items()
        if taken is None or one.name in taken
    ]
    where = f"{param}.allowed_tools"
    if taken is not None and not taken:
        raise InvalidRequest(f"`{where}` names no tool: name some, or leave it out for all", param=where)
    missing = set(taken or ()) - {one["name"] for one in told}
    if missing or not told:
        named = f" {min(missing)[:80]}" if missing else ""
        raise InvalidRequest(f"the server {name} has no tool{named}", param=where)
    return told


def _taken(tool: FunctionTool, where: str) -> Sequence[str] | None:
    allowed = tool.allowed_tools
    if not isinstance(allowed, dict):
        return allowed
    names = allowed.get("tool_names")
    if set(allowed) - {"tool_names"} or not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise unsupported(f"`{where}` is a list of names, or has them in `tool_names`", where)
    return names


def label_of(function: str, listed: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the label of the server and its own name for a function that the model has called."""
    for server in listed:
        for tool in server["tools"]:
            if tool["function"] == function:
                return str(server["server_label"]), str(tool["name"])
    return OWN_LABEL, function
