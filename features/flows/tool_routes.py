"""Routes of the tools that the server calls: create, list, read, replace, delete."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.features.flows.server_listing import with_tools
from headrace.features.flows.tool_views import (
    HTTP_EXAMPLE,
    MCP_EXAMPLE,
    NewTool,
    ToolDefinition,
    ToolDeleted,
    ToolList,
    ToolObject,
    tool_object,
)
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.mcp_servers import servers_of
from headrace.features.flows.tools.tool_definition import Definition, HttpTool, McpEndpoint
from headrace.features.flows.tools.tools import StoredTool
from headrace.policy.schemas import check_schema
from headrace.producer_api.access.auth import WebhooksAdmin
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED
from headrace.store.calls.addresses import check_url
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.errors import InvalidRequest

router = APIRouter(prefix="/v1/tools", tags=["tools"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_REPLACED: Any = {"http": {"value": HTTP_EXAMPLE}, "mcp": {"value": MCP_EXAMPLE}}
_NEW: Any = {
    "http": {"value": {"name": "weather", **HTTP_EXAMPLE}},
    "mcp": {"value": {"name": "tracker", **MCP_EXAMPLE}},
}
ToolId = Annotated[str, Path(description="the tool", examples=["tool_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]


def _checked(runtime: Runtime, name: Callable[[], str], given: HttpTool | McpEndpoint) -> Definition:
    """Return what to store; a server is asked for its tools. Blocks.

    Raises InvalidRequest for a URL that may not be called, a command that the operator does not have, a schema that
    cannot be followed, a server without tools.
    """
    if given.url is not None:
        check_url(given.url, runtime.settings, param="url")
    if isinstance(given, McpEndpoint):
        return with_tools(servers_of(runtime.settings, GuardedClient(runtime.settings)), name(), given)
    try:
        check_schema(given.parameters, "parameters")
    except ValueError as error:
        raise InvalidRequest(str(error), code="invalid_json_schema", param="parameters") from None
    return given


@router.post("", status_code=201, response_model=ToolObject, summary="Create a tool")
async def create_tool(
    runtime: RuntimeOf, principal: WebhooksAdmin, body: Annotated[NewTool, Body(openapi_examples=_NEW)]
) -> Response:
    """Add a tool that the server calls for the models of the tenant, or a server of MCP with its tools."""
    owner, actor = principal.tenant_id, principal.key_id

    def create() -> StoredTool:
        made = _checked(runtime, lambda: body.name, body.definition)
        return tools.create(runtime.db, owner, body.name, made, actor=actor)

    return JsonResponse(
        tool_object(await runtime.submissions.hook(FlowSubmissions).tool_threads.run(owner, create)), status_code=201
    )


@router.get("", response_model=ToolList, summary="List tools")
async def list_tools(runtime: RuntimeOf, principal: WebhooksAdmin) -> Response:
    """Return the tenant's tools, by name."""
    found = await run_in_threadpool(tools.list_tools, runtime.db, principal.tenant_id)
    return JsonResponse(ToolList(data=[tool_object(one) for one in found]))


@router.get("/{tool_id}", response_model=ToolObject, summary="Retrieve a tool")
async def get_tool(runtime: RuntimeOf, principal: WebhooksAdmin, tool_id: ToolId) -> Response:
    """Return a tool, with the names of its headers."""
    return JsonResponse(tool_object(await run_in_threadpool(tools.get, runtime.db, principal.tenant_id, tool_id)))


@router.put("/{tool_id}", response_model=ToolObject, summary="Replace a tool's definition")
async def replace_tool(
    runtime: RuntimeOf,
    principal: WebhooksAdmin,
    tool_id: ToolId,
    body: Annotated[ToolDefinition, Body(openapi_examples=_REPLACED)],
) -> Response:
    """Replace all of a tool but its name. The next call uses the new URL and headers; a server is asked again."""
    owner, actor = principal.tenant_id, principal.key_id

    def replace() -> StoredTool:
        made = _checked(runtime, lambda: tools.get(runtime.db, owner, tool_id).name, body)
        return tools.replace(runtime.db, owner, tool_id, made, actor=actor)

    return JsonResponse(tool_object(await runtime.submissions.hook(FlowSubmissions).tool_threads.run(owner, replace)))


@router.delete("/{tool_id}", response_model=ToolDeleted, summary="Delete a tool")
async def delete_tool(runtime: RuntimeOf, principal: WebhooksAdmin, tool_id: ToolId) -> Response:
    """Delete a tool. A job that calls it from now on is told that there is none."""
    await run_in_threadpool(tools.delete, runtime.db, principal.tenant_id, tool_id, actor=principal.key_id)
    return JsonResponse(ToolDeleted(id=tool_id))
