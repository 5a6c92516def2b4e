"""The server of MCP in front of a live API, called by the official client."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, Request, RequestParams, Result, TextContent
from pydantic import ConfigDict, Field

from headrace.features.mcp_server import model_tools
from headrace.features.mcp_server.model_tools import TASKS_EXTENSION, ModelTools
from tests.processes import Process, StartProcess, free_port, python, until
from tests.producer_api.scripted_worker import Attempt, ScriptedWorker
from tests.producer_api.serving import ApiServer

HELLO = {"prompt": "hello"}


class Task(Result):
    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = Field(alias="resultType")
    task_id: str = Field(alias="taskId")
    status: str


class Told(Result):
    model_config = ConfigDict(extra="allow")


class Params(RequestParams):
    task_id: str = Field(serialization_alias="taskId")


class TaskRequest(Request[Params, str]):
    name_param = "taskId"


async def never(_task: Task, _context: ClaimContext) -> CallToolResult:
    raise AssertionError


class Tasks(ClientExtension):
    identifier = TASKS_EXTENSION

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Task, resolve=never)]


async def begun(client: Client, **arguments: Any) -> Task:
    task = await client.session.call_tool("tiny", HELLO | arguments, allow_claimed=True)
    assert isinstance(task, Task)
    return task


async def ask(client: Client, method: str, task_id: str) -> dict[str, Any]:
    request = TaskRequest(method=method, params=Params(task_id=task_id))
    found = (await client.session.send_request(request, Told)).model_dump(by_alias=True)
    return {name: value for name, value in found.items() if name != "_meta"}


@asynccontextmanager
async def over_http(port: int, key: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(
            streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http), extensions=[Tasks()]
        ) as client,
    ):
        yield client


async def test_a_task_is_a_job_which_outlives_the_server(
    server: ApiServer, key: str, other_key: str, worker: ScriptedWorker, start_process: StartProcess
) -> None:
    port = free_port()

    async def start() -> Process:
        command = python("-m", "headrace.cli.main", "mcp", "--port", str(port))
        process = start_process(command, {"HEADRACE_API_URL": server.url})
        await until(lambda: answers(port))
        return process

    first = await start()
    async with over_http(port, key) as client:
        task = await begun(client, job={"metadata": {"of": "mcp"}})
        ended = await begun(client)
    assert task.status == "working"
    first.signal(9)
    first.wait_exit()
    await start()
    async with over_http(port, key) as client:
        assert (await ask(client, "tasks/get", task.task_id))["status"] == "working"
        assert await ask(client, "tasks/cancel", ended.task_id) == {"resultType": "complete"}
        assert await ask(client, "tasks/cancel", ended.task_id) == {"resultType": "complete"}
        attempt = worker.claim(task.task_id)
        worker.say(attempt, "Hi", "!")
        worker.succeed(attempt)
        found = await ask(client, "tasks/get", task.task_id)
        assert (found["status"], found["result"]["content"][0]["text"]) == ("completed", "Hi!")
        assert (await ask(client, "tasks/get", ended.task_id))["status"] == "cancelled"
        with pytest.raises(MCPError, match="job_1"):
            await ask(client, "tasks/get", "job_1")
    for stranger in (other_key, ""):
        async with over_http(port, stranger) as client:
            with pytest.raises(MCPError):
                await ask(client, "tasks/get", task.task_id)


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_caller_that_knows_no_tasks_gets_the_result(
    server: ApiServer, key: str, worker: ScriptedWorker, mode: Literal["legacy", "auto"]
) -> None:
    command, *args = python("-m", "headrace.cli.main", "mcp")
    given = {"HEADRACE_API_URL": server.url, "HEADRACE_API_KEY": key}
    async with Client(StdioServerParameters(command=command, args=args, env=given), mode=mode) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, {"prompt", "messages", "job"} <= tool.input_schema["properties"].keys()) == ("tiny", True)
        with worker.serve(lambda payload: ["up to ", str(payload["sampling"]["max_tokens"])]):
            answer = await client.call_tool("tiny", HELLO | {"job": {"sampling": {"max_tokens": 7}}})
        assert (text_of(answer), answer.is_error, answer.structured_content["text"]) == ("up to 7", False, "up to 7")
        refused = await client.call_tool("tiny", HELLO | {"more": 1})
        assert (refused.is_error, "`input.more`" in text_of(refused)) == (True, True)
        with pytest.raises(MCPError, match="large"):
            await client.call_tool("large", HELLO)


def text_of(answer: CallToolResult) -> str:
    (content,) = answer.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize(
    ("end", "status", "place"),
    [
        (lambda worker, attempt: worker.fail(attempt, "invalid_image", "no image"), "completed", "result"),
        (lambda worker, attempt: worker.fail(attempt, "poison", "three workers died"), "failed", "error"),
        (lambda worker, attempt: worker.expire(attempt), "failed", "error"),
        (lambda worker, attempt: worker.obey_cancel(attempt), "cancelled", None),
    ],
)
async def test_only_a_failure_of_the_server_is_a_failed_task(
    monkeypatch: pytest.MonkeyPatch,
    server: ApiServer,
    key: str,
    worker: ScriptedWorker,
    end: Any,
    status: str,
    place: str,
) -> None:
    monkeypatch.setattr(model_tools, "PATIENCE_S", 0.01)
    async with Client(ModelTools(server.url, key).server(), extensions=[Tasks()]) as client:
        task = await begun(client)
        attempt: Attempt = worker.claim(task.task_id)
        end(worker, attempt)
        found = await ask(client, "tasks/get", task.task_id)
    assert (found["status"], found.get("result", {}).get("isError")) == (status, True if place == "result" else None)
    assert [name for name in ("result", "error") if name in found] == ([place] if place else [])


async def test_a_caller_that_goes_away_cancels_its_job(server: ApiServer, api: httpx2.Client, key: str) -> None:
    async with Client(ModelTools(server.url, key).server()) as client:
        call = asyncio.create_task(client.call_tool("tiny", HELLO))
        (job,) = await until(lambda: api.get("/v1/jobs").json()["data"])
        call.cancel()
        path = f"/v1/jobs/{job['id']}"
        await until(lambda: api.get(path).json()["completed_at"])
    assert api.get(path).json()["status"] == "cancelled"
