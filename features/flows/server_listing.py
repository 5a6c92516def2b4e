"""The tools of a server of MCP, asked for when it is stored. What cannot be offered to a model is refused here."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from headrace.features.flows.tools.mcp_client import McpRefused, McpStatus
from headrace.features.flows.tools.mcp_servers import McpServers
from headrace.features.flows.tools.mcp_stdio import CommandUnknown
from headrace.features.flows.tools.tool_definition import (
    MOST_SERVER_TOOLS,
    MOST_TOLD_CHARS,
    McpEndpoint,
    McpServer,
    McpTool,
)
from headrace.policy.schemas import check_schema
from headrace.store.calls.ssrf_guard import CallFailed
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import FunctionSpec
from headrace.store.payloads.server_tools import SEPARATOR
from headrace.store.payloads.tool_approval import named_in

LONGEST_S: Final = 10.0
_MOST_PAGE_BYTES: Final = 512 * 1024
_MOST_BYTES: Final = 256 * 1024
_LEFT_OUT: Final = "say in `only` which tools to take"


def with_tools(servers: McpServers, name: str, endpoint: McpEndpoint) -> McpServer:
    """Ask a server for its tools and return it with them. Blocks. Raises InvalidRequest, also if it does not answer."""
    timeout_s = min(endpoint.timeout_ms / 1000, LONGEST_S)
    try:
        with servers.session(endpoint, timeout_s) as session:
            told = session.list_tools(_MOST_PAGE_BYTES)
    except CommandUnknown as error:
        raise InvalidRequest(f"{error}: ask the operator for its name, or give a `url`", param="command") from None
    except (CallFailed, McpRefused, McpStatus) as error:
        param = "command" if endpoint.url is None else "url"
        raise InvalidRequest(
            f"the server of MCP did not tell its tools: {error}", code="tool_server_failed", param=param
        ) from None
    return server_with(name, endpoint, told)


def server_with(name: str, endpoint: McpEndpoint, told: Sequence[Mapping[str, Any]]) -> McpServer:
    """Return a server with what it told. Raises InvalidRequest, which names the tool that cannot be offered."""
    by_name = {str(tool.get("name") or ""): tool for tool in told}
    for wanted in endpoint.only or ():
        if wanted not in by_name:
            raise InvalidRequest(f"the server has no tool {wanted}: it has {_some(by_name)}", param="only")
    chosen = endpoint.only or tuple(by_name)
    for wanted in sorted(named_in(endpoint.require_approval).difference(chosen)):
        raise InvalidRequest(f"the server has no tool {wanted}: it has {_some(by_name)}", param="require_approval")
    if not 1 <= len(chosen) <= MOST_SERVER_TOOLS:
        raise _refused(f"the server has {len(chosen)} tools, and 1 to {MOST_SERVER_TOOLS} are accepted")
    tools: dict[str, McpTool] = {}
    for one in chosen:
        short = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "_-") else "_" for sign in one)
        if short in tools:
            raise _refused(f"two tools of the server would be {name}{SEPARATOR}{short}")
        tools[short] = _tool(f"{name}{SEPARATOR}{short}", one, by_name[one])
    server = McpServer(**endpoint.model_dump(include=set(McpEndpoint.model_fields)), tools=tools)
    stored = server.model_dump_json(include={"tools"})
    if len(stored) > _MOST_BYTES:
        raise _refused(f"the server's tools have more than {_MOST_BYTES} bytes")
    if "\\u0000" in stored:
        raise _refused("the server's tools have the character NUL, which is not accepted")
    return server


def _tool(function: str, name: str, told: Mapping[str, Any]) -> McpTool:
    schema = told.get("inputSchema")
    description = str(told.get("description") or told.get("title") or "")[:MOST_TOLD_CHARS]
    try:
        FunctionSpec(name=function)
        tool = McpTool(
            name=name,
            description=description,
            parameters={"type": "object", "properties": {}} if schema is None else schema,
        )
        check_schema(tool.parameters, "parameters")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _refused(f"the tool {function}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise _refused(f"the tool {function}: {error}") from None
    return tool


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"{why[:500]}; {_LEFT_OUT}", code="tool_server_failed", param="only")


def _some(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))[:300] or "none"
