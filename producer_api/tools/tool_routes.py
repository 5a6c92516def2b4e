"""Routes of the tools that the server calls: create, list, read, replace, delete."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from policy.schemas import check_schema
from producer_api.access.auth import WebhooksAdmin
from producer_api.http.requests import RuntimeOf, StrictJsonRoute
from producer_api.http.views import JsonResponse
from producer_api.runtime import Runtime
from producer_api.server.errors import DOCUMENTED
from producer_api.tools.tool_views import NewTool, ToolDefinition, ToolDeleted, ToolList, ToolObject, tool_object
from store.errors import InvalidRequest
from store.payloads.tool_definition import HttpTool
from store.tools import tools
from store.webhooks.addresses import check_url

router = APIRouter(prefix="/v1/tools", tags=["tools"], route_class=StrictJsonRoute, responses=DOCUMENTED)

ToolId = Annotated[str, Path(description="the tool", examples=["tool_0197f0c2a3b47d518e9a2b6c7d8e9f01"])]

T = TypeVar("T")


def _check(runtime: Runtime, definition: HttpTool) -> None:
    """Raise InvalidRequest for a URL that may not be called, or a schema that cannot be followed."""
    check_url(definition.url, runtime.settings, param="url")
    try:
        check_schema(definition.parameters, "parameters")
    except ValueError as error:
        raise InvalidRequest(str(error), code="invalid_json_schema", param="parameters") from None


async def _checked(runtime: Runtime, definition: HttpTool, then: Callable[[], T]) -> T:
    def run() -> T:
        _check(runtime, definition)
        return then()

    return await run_in_threadpool(run)


@router.post("", status_code=201, response_model=ToolObject, summary="Create a tool")
async def create_tool(runtime: RuntimeOf, principal: WebhooksAdmin, body: NewTool) -> Response:
    """Add a tool that the server calls for the models of the tenant."""
    owner, actor, made = principal.tenant_id, principal.key_id, body.definition
    stored = await _checked(runtime, made, lambda: tools.create(runtime.db, owner, body.name, made, actor=actor))
    return JsonResponse(tool_object(stored), status_code=201)


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
async def replace_tool(runtime: RuntimeOf, principal: WebhooksAdmin, tool_id: ToolId, body: ToolDefinition) -> Response:
    """Replace all of a tool but its name. The next call uses the new URL and headers."""
    owner, actor = principal.tenant_id, principal.key_id
    stored = await _checked(runtime, body, lambda: tools.replace(runtime.db, owner, tool_id, body, actor=actor))
    return JsonResponse(tool_object(stored))


@router.delete("/{tool_id}", response_model=ToolDeleted, summary="Delete a tool")
async def delete_tool(runtime: RuntimeOf, principal: WebhooksAdmin, tool_id: ToolId) -> Response:
    """Delete a tool. A job that calls it from now on is told that there is none."""
    await run_in_threadpool(tools.delete, runtime.db, principal.tenant_id, tool_id, actor=principal.key_id)
    return JsonResponse(ToolDeleted(id=tool_id))
