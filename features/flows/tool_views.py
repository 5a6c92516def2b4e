"""Request and response models of the tools that the server calls."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic.config import JsonDict

from headrace.features.flows.tools.tool_definition import HttpTool, McpEndpoint, McpServer
from headrace.features.flows.tools.tools import StoredTool
from headrace.producer_api.http.views import seconds
from headrace.store.payloads.conversation import FunctionName
from headrace.store.payloads.server_tools import SEPARATOR
from headrace.store.payloads.strict_model import Strict
from headrace.store.payloads.tool_approval import RequireApproval
from headrace.store.tasks.registry import TASK_TAG

HTTP_EXAMPLE: JsonDict = {
    "description": "The weather in a city, now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 64}},
        "required": ["city"],
    },
    "url": "https://tools.example.com/weather",
    "headers": {"Authorization": "Bearer 0123456789"},
    "timeout_ms": 5000,
}


MCP_EXAMPLE: JsonDict = {
    "type": "mcp",
    "url": "https://mcp.example.com/mcp",
    "headers": {"Authorization": "Bearer 0123456789"},
    "only": ["search_issues"],
}


def _without_separator(name: str) -> str:
    if SEPARATOR in name or name.endswith("_"):
        raise ValueError(f"the name has no `{SEPARATOR}` and does not end with `_`: tools of servers have such names")
    return name


NewName = Annotated[FunctionName, AfterValidator(_without_separator)]


class HttpDefinition(HttpTool):
    """A new definition of a tool; what is left out gets its default, also the headers."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [HTTP_EXAMPLE]})


class McpDefinition(McpEndpoint):
    """A server of MCP in place of what there was; it is asked for its tools again."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [MCP_EXAMPLE]})


class NewHttpTool(HttpTool):
    """A tool with its name, by which requests use it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"name": "weather", **HTTP_EXAMPLE}]}
    )

    name: NewName = Field(description="letters, digits, `_` and `-`; a model calls the tool by it")

    @property
    def definition(self) -> HttpTool:
        """The definition without the name."""
        return HttpTool.model_validate(self.model_dump(exclude={"name"}))


class NewMcpServer(McpEndpoint):
    """A server of MCP with its name, which is the first part of the names of its tools."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"name": "tracker", **MCP_EXAMPLE}]}
    )

    name: NewName = Field(description="letters, digits, `_` and `-`; a model calls the tool `search` as name__search")

    @property
    def definition(self) -> McpEndpoint:
        """The definition without the name."""
        return McpEndpoint.model_validate(self.model_dump(exclude={"name"}))


def _kind(body: object) -> str:
    kind = body.get("type") if isinstance(body, Mapping) else getattr(body, "type", None)
    return f"{TASK_TAG}{'mcp' if kind == 'mcp' else 'http'}"


# The prefix tells the writer of errors that the tag is no field of the body.
_HTTP, _MCP = Tag(f"{TASK_TAG}http"), Tag(f"{TASK_TAG}mcp")
ToolDefinition = Annotated[Annotated[HttpDefinition, _HTTP] | Annotated[McpDefinition, _MCP], Discriminator(_kind)]
NewTool = Annotated[Annotated[NewHttpTool, _HTTP] | Annotated[NewMcpServer, _MCP], Discriminator(_kind)]


class ServerTool(BaseModel):
    """A tool of a server of MCP."""

    name: str = Field(description="by which a model calls it")
    description: str = Field(description="what it does, for the model, as the server told it")
    parameters: dict[str, Any] = Field(description="JSON Schema of its arguments")


class ToolObject(BaseModel):
    """A tool. The values of its headers are never shown."""

    id: str
    object: Literal["tool"] = "tool"
    name: str = Field(description="its name, by which requests use it")
    type: str = Field(description="how it is called")
    description: str | None = Field(None, description="what it does, for the model; null of a server of MCP")
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of its arguments; null of a server of MCP")
    tools: list[ServerTool] | None = Field(None, description="the tools of a server of MCP when it was stored")
    url: str | None = Field(description="it is called by `POST` there; null of a command")
    command: str | None = Field(None, description="the operator's command that is the server of MCP")
    headers: list[str] = Field(description="the names of the headers that are sent with each call")
    timeout_ms: int = Field(description="deadline of a call with all its tries")
    max_attempts: int = Field(description="most tries of a call")
    max_result_bytes: int = Field(description="a longer answer is an error for the model")
    require_approval: RequireApproval = Field("never", description="which calls wait until they are approved")
    created_at: int
    updated_at: int = Field(description="Unix seconds")


class ToolList(BaseModel):
    """All of a tenant's tools."""

    object: Literal["list"] = "list"
    data: list[ToolObject]


class ToolDeleted(Strict):
    """The deleted tool."""

    id: str
    object: Literal["tool.deleted"] = "tool.deleted"
    deleted: Literal[True] = True


def tool_object(stored: StoredTool) -> ToolObject:
    """Return a tool without the values of its headers."""
    made = stored.definition
    told = {"tools": _server_tools(stored.name, made)} if isinstance(made, McpServer) else {}
    return ToolObject(
        id=stored.id,
        name=stored.name,
        headers=sorted(made.headers),
        created_at=int(stored.created_at.timestamp()),
        updated_at=seconds(stored.updated_at) or 0,
        **made.model_dump(exclude={"headers", "tools", "only"}),
        **told,
    )


def _server_tools(name: str, server: McpServer) -> list[ServerTool]:
    return [ServerTool(name=function, **told) for function, told in server.functions(name).items()]
