"""A server of MCP in front of the API. Its tools are the models, and a task is a job under its own id.

    tools/list     GET /v1/models                  tools/call     POST /v1/jobs, then the wait for its end
    tasks/get      GET /v1/jobs/{id}               tasks/cancel   POST /v1/jobs/{id}/cancel

It stores nothing and has no rights of its own: each request of MCP is a request of the API with the caller's key. So
any number of processes serve the same callers, and a task outlives all of them.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

import anyio
import uvicorn
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import require_client_extension
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    RequestParams,
    TextContent,
    Tool,
)
from pydantic import Field

from headrace.client import AsyncClient, ClientError, InvalidApiKey, JobBody, JobInfo, RequestRefused, ResourceMissing
from headrace.store.tasks.registry import TASKS

TASKS_EXTENSION = "io.modelcontextprotocol/tasks"
PATIENCE_S = 1.0
"""A job that ends within this time is answered at once, and no task is made of it."""

POLL_MS = 1000
_LIVE = frozenset({"queued", "running"})
# The job failed, and not because of what it asked for: MCP tells these from a tool that reports an error.
_NOT_THE_INPUT = frozenset(
    {"engine_error", "internal_error", "max_attempts_exceeded", "out_of_memory", "poison", "worker_lost"}
)
_JOB_OPTIONS = {
    "type": "object",
    "description": "other fields of a Headrace job, such as sampling, deadline_ms or metadata",
}

Context = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    """The parameters of each method of tasks."""

    task_id: str = Field(alias="taskId")


class ModelTools:
    """The handlers. ``api_key`` None: the key is in the header of each request, as in the API."""

    def __init__(self, api_url: str, api_key: str | None) -> None:
        self._api_url, self._api_key = api_url, api_key

    def server(self) -> Server[Any]:
        """Return a server with the handlers."""
        server: Server[Any] = Server(
            "headrace",
            version=version("headrace"),
            instructions="Each tool is a model. Long calls become tasks, which go on without their caller.",
            on_list_tools=self.list_tools,
            on_call_tool=cast(Any, self.call_tool),  # A call may also return a task, as an extension's result.
        )
        server.extensions = {TASKS_EXTENSION: {}}
        server.add_request_handler("tasks/get", TaskParams, self.get_task)
        server.add_request_handler("tasks/update", TaskParams, self.update_task)
        server.add_request_handler("tasks/cancel", TaskParams, self.cancel_task)
        return server

    async def list_tools(self, ctx: Context, _params: PaginatedRequestParams | None) -> ListToolsResult:
        """Return a tool for each model."""
        async with self._client(ctx) as client:
            found = await _models(client)
        return ListToolsResult(tools=[_tool(name, model) for name, model in found.items()])

    async def call_tool(self, ctx: Context, params: CallToolRequestParams) -> HandlerResult:
        """Make a job of the call; return its result, or a task if the caller knows tasks and the job takes longer."""
        body = dict(params.arguments or {})
        options = body.pop("job", None) or {}
        async with self._client(ctx) as client:
            model = (await _models(client)).get(params.name)
            if model is None:
                raise MCPError(INVALID_PARAMS, f"there is no tool {params.name}: tools/list has all")
            fields = {**options, "model": model["id"], "task": model["task"], "input": body}
            try:
                job = await client.submit(**cast(JobBody, fields))
            except InvalidApiKey:
                raise
            except ClientError as error:
                return _failed(error.message)  # The caller may try again, or otherwise.
            if _knows_tasks(ctx):
                job = await client.job(job["id"], wait_s=PATIENCE_S)
                return {**_task(job), "resultType": "task"} if job["status"] in _LIVE else _result(job)
            try:
                return _result(await client.wait(job["id"]))
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):  # Nobody could ever read its answer.
                    await client.cancel(job["id"])
                raise

    async def get_task(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """Return the state of a job, with its result at the end."""
        async with self._client(ctx, params) as client:
            job = await client.job(params.task_id)
        task = _task(job)
        if task["status"] == "completed":
            return {**task, "result": _result(job).model_dump(by_alias=True, mode="json", exclude_none=True)}
        if task["status"] == "failed":
            return {**task, "error": {"code": INTERNAL_ERROR, "message": _why(job)}}
        return task

    async def update_task(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """Do nothing: no job asks its caller for input."""
        async with self._client(ctx, params) as client:
            await client.job(params.task_id)
        return {}

    async def cancel_task(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """Cancel a job. One that has ended stays as it is."""
        async with self._client(ctx, params) as client:
            try:
                await client.cancel(params.task_id)
            except RequestRefused as error:
                if error.code != "job_not_cancellable":
                    raise
        return {}

    @asynccontextmanager
    async def _client(self, ctx: Context, of_task: TaskParams | None = None) -> AsyncIterator[AsyncClient]:
        """Yield a client with the caller's key, whose errors leave the block as those of MCP."""
        headers: Mapping[str, str] = {} if ctx.request is None else ctx.request.headers
        if of_task is not None:
            require_client_extension(ctx, TASKS_EXTENSION)
            if headers.get("mcp-name", of_task.task_id) != of_task.task_id:
                raise MCPError(HEADER_MISMATCH, "Mcp-Name and taskId differ")
        key = self._api_key or headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not key:
            raise MCPError(INVALID_REQUEST, "send an API key of Headrace as `Authorization: Bearer hr_…`")
        try:
            async with AsyncClient(self._api_url, key) as client:
                yield client
        except ResourceMissing as error:
            raise MCPError(INVALID_PARAMS, error.message) from error
        except RequestRefused as error:
            raise MCPError(INVALID_REQUEST, error.message) from error
        except ClientError as error:
            raise MCPError(INTERNAL_ERROR, error.message) from error


async def _models(client: AsyncClient) -> dict[str, Mapping[str, Any]]:
    """Return the models by the names of their tools, which have only letters, digits, - and _: hosts want it so."""
    found = (await client.request("GET", "/v1/models"))["data"]
    return {
        re.sub(r"[^A-Za-z0-9_-]", "-", one["id"]): one
        for one in found
        if one["id"] == one["root"] and one["task"] in TASKS
    }


def _tool(name: str, model: Mapping[str, Any]) -> Tool:
    task = TASKS[model["task"]]
    schema = cast(Any, task.request.model_fields["input"].annotation).model_json_schema()
    schema["properties"] = {**schema["properties"], "job": _JOB_OPTIONS}
    return Tool(
        name=name, description=f"The model {model['id']}, which {task.purpose.partition(':')[0]}.", input_schema=schema
    )


def _knows_tasks(ctx: Context) -> bool:
    capabilities = ctx.session.client_capabilities
    return capabilities is not None and TASKS_EXTENSION in (capabilities.extensions or {})


def _task(job: JobInfo) -> dict[str, Any]:
    status: str = job["status"]
    if status in _LIVE:
        status = "working"
    elif status == "expired" or (status == "failed" and (job["error"] or {}).get("code") in _NOT_THE_INPUT):
        status = "failed"
    elif status != "cancelled":
        status = "completed"
    return {
        "taskId": job["id"],
        "status": status,
        "statusMessage": job["status"],
        "createdAt": _time(job["created_at"]),
        "lastUpdatedAt": _time(job["completed_at"] or job["started_at"] or job["created_at"]),
        "ttlMs": None,  # As long as the tenant's retention keeps the job.
        "pollIntervalMs": POLL_MS,
    }


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _result(job: JobInfo) -> CallToolResult:
    output = job["output"]
    if job["status"] != "succeeded" or output is None:
        return _failed(_why(job))
    text = output.get("text")
    told = text if isinstance(text, str) else json.dumps(output, ensure_ascii=False)
    return CallToolResult(content=[TextContent(text=told)], structured_content=output)


def _failed(why: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=why)], is_error=True)


def _why(job: JobInfo) -> str:
    message = (job["error"] or {}).get("message")
    return f"{job['id']} {job['status']}" + (f": {message}" if message else "")


async def serve_stdio(api_url: str, api_key: str) -> None:
    """Serve the process that started this one, until it closes the pipe."""
    server = ModelTools(api_url, api_key).server()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_http(api_url: str, host: str, port: int) -> None:
    """Serve until a signal. Callers send their own keys."""
    app = ModelTools(api_url, None).server().streamable_http_app(json_response=True, stateless_http=True, host=host)
    uvicorn.run(app, host=host, port=port, log_level="warning")
