"""Tools of the Responses API as functions of a job: plain functions, and those of a namespace. ``file_search`` is none
of them (``file_searches``).

A function of a namespace is ``NAMESPACE__NAME`` for the model. In the answer its call has the name and the namespace
apart, as OpenAI writes it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import ConfigDict, Field, StrictBool, StrictInt

from headrace.features.responses.file_searches import FILE_SEARCH, place_of, shown_search
from headrace.producer_api.http.job_options import unsupported
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.strict_model import Body

_SEARCHES = "web_search"
MCP: Final = "mcp"
"""The type of a tool that is a server of MCP, whose tools the server calls (``mcp_tools``)."""

_OF_MCP = ("server_label", "server_url", "allowed_tools", "require_approval", "server_description")
_APART = "__"


class FunctionTool(Body):
    """A function, a namespace of them, ``file_search`` or ``mcp``. The server never runs a function."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None
    tools: "tuple[FunctionTool, ...] | None" = Field(None, description="of a namespace: its functions")
    vector_store_ids: tuple[str, ...] | None = Field(None, description="of `file_search`: the stores, 1 to 8")
    max_num_results: StrictInt | None = Field(None, description="of `file_search`: most passages, 5 without it")
    filters: dict[str, Any] | None = Field(None, description="of `file_search`: on attributes of files")
    ranking_options: dict[str, Any] | None = Field(None, description="of `file_search`: as in a search")
    server_label: str | None = Field(None, description="of `mcp`: the name of the server in the answer")
    server_url: str | None = Field(None, description="of `mcp`: the URL of a registered server")
    allowed_tools: tuple[str, ...] | dict[str, Any] | None = Field(None, description="of `mcp`: the tools to take")
    require_approval: str | dict[str, Any] | None = Field(
        None, description="of `mcp`: which calls need an approval; `always` without it"
    )
    server_description: str | None = Field(None, description="of `mcp`: not used")
    headers: dict[str, str] | None = Field(None, description="of `mcp`: refused, they are stored with the server")
    authorization: str | None = Field(None, description="of `mcp`: refused, it is stored with the server")
    connector_id: str | None = Field(None, description="of `mcp`: refused, name a server")


def tools_of(
    tools: Sequence[FunctionTool], choice: str | dict[str, Any] | None, is_parallel: bool | None
) -> dict[str, Any]:
    """Return the tools in the format of chat completions. Raises InvalidRequest for one that is not supported."""
    functions = [function for index, tool in enumerate(tools) for function in _functions(tool, f"tools[{index}]")]
    searches = place_of(tools) is not None
    calls = any(tool.type == MCP for tool in tools)
    if isinstance(choice, dict) and choice.get("type") == FILE_SEARCH and searches:
        choice = None  # it is searched in any case
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise unsupported("`tool_choice` is a mode or a function: other tools are not supported", "tool_choice")
        choice = {"type": "function", "function": {"name": flat_name(choice.get("namespace"), choice.get("name"))}}
    if not functions and searches and choice == "required":
        return {}  # it is searched in any case
    if not functions:
        if not searches and not calls:
            _check_alone(tools)
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("`tool_choice` needs `tools`", param="tool_choice")
        return {}
    given = {"tools": functions, "tool_choice": choice, "parallel_tool_calls": is_parallel}
    return {name: value for name, value in given.items() if value is not None}


def shown_tools(tools: Iterable[FunctionTool]) -> list[dict[str, Any]]:
    """Return the tools with their known fields. Unknown field names are user text and must not be stored."""
    return [_shown(tool) for tool in tools]


def _shown(tool: FunctionTool) -> dict[str, Any]:
    if tool.type == FILE_SEARCH:
        return shown_search(tool)
    if tool.type == MCP:
        return tool.model_dump(mode="json", include={"type", *_OF_MCP}, exclude_none=True)
    shown = tool.model_dump(mode="json", include={"type", "name", "description", "parameters", "strict"})
    return shown if tool.tools is None else {**shown, "tools": shown_tools(tool.tools)}


def flat_name(namespace: str | None, name: Any) -> Any:
    """Return the name of a function for the model."""
    return name if namespace is None else f"{namespace}{_APART}{name}"


def name_fields(flat: str, tools: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the fields of a call for its function. ``tools`` are those that the response shows."""
    for tool in tools:
        prefix = f"{tool.get('name')}{_APART}"
        if tool.get("type") == "namespace" and flat.startswith(prefix):
            return {"name": flat.removeprefix(prefix), "namespace": str(tool["name"])}
    return {"name": flat}


def _functions(tool: FunctionTool, param: str, namespace: str | None = None) -> list[dict[str, Any]]:
    if tool.type == "namespace" and namespace is None:
        if tool.name is None:
            raise InvalidRequest(f"`{param}.name` is required", param=f"{param}.name")
        inner = enumerate(tool.tools or ())
        return [each for index, one in inner for each in _functions(one, f"{param}.tools[{index}]", tool.name)]
    if tool.type in (FILE_SEARCH, MCP) and namespace is None:
        return []
    if tool.type.startswith(_SEARCHES) and namespace is None:
        return []  # the model may choose not to search, and this one has no other choice
    if tool.type != "function":
        known = "`file_search` and `mcp` are, and functions, which the caller runs"
        raise unsupported(f"`{param}.type` {tool.type[:40]!r} is not supported: {known}", f"{param}.type")
    function = tool.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
    if tool.name is not None:
        function["name"] = flat_name(namespace, tool.name)
    return [{"type": "function", "function": function}]


def _check_alone(tools: Sequence[FunctionTool]) -> None:
    """Raise InvalidRequest for a search without other tools: then the answer is meant to come from it."""
    for index, tool in enumerate(tools):
        if tool.type.startswith(_SEARCHES):
            where = f"tools[{index}].type"
            known = "the web is not searched here, it is left out beside functions and `file_search` only"
            raise unsupported(f"`{where}` {tool.type[:40]!r} is not supported: {known}", where)
