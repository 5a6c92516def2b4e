"""OpenAI's client asks for a response with a real server of MCP: API, dispatcher, two workers and the server."""

import re
from typing import Any

import pytest
from openai import OpenAI

from headrace.features.flows.task import CALL_TOOL
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings
from tests.e2e.test_embeddings import calling
from tests.processes import StartProcess, python
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment

LOCAL = {"webhook_allow_http": True, "webhook_allow_networks": ("127.0.0.0/8",)}


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_response_calls_a_server_of_mcp_and_streams_what_happens(
    settings: Settings, db: Database, start_process: StartProcess
) -> None:
    served = start_process(python("-m", "tests.features.flows.tools.mcp_server"))
    found = re.search(r"ports=(\d+),", served.wait_log(";"))
    assert found is not None
    url = f"http://127.0.0.1:{found[1]}/mcp"
    runner = CALL_TOOL.fake_runner
    made = register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )
    benches = [Bench(db, settings, made), Bench(db, settings, register(db, "writer", "fake", "auto", actor="tests"))]
    duties = [Duties(bench) for bench in benches]
    for one in duties:
        one.start()
    try:
        allowed = {"webhook_allow_http": "true", "webhook_allow_networks": "127.0.0.0/8"}
        start_process(worker_command("tools"), worker_environment(settings, allowed))
        start_process(worker_command("writer"), worker_environment(settings, {}))
        with calling(settings.model_copy(update=LOCAL), db, benches[0].tenant_id) as client:
            server = {"name": "demo", "type": "mcp", "url": url, "timeout_ms": 60_000}
            client.post("/tools", body=server, cast_to=dict[str, object])
            _ask(client, url)
            _approve(client, url)
    finally:
        for one in duties:
            one.stop()
        for bench in benches:
            bench.close()


def _ask(client: OpenAI, url: str) -> None:
    tool: Any = {"type": "mcp", "server_label": "adder", "server_url": url, "require_approval": "never"}
    asked: Any = {
        "model": "writer",
        "input": "What is two and three?",
        "tools": [{**tool, "allowed_tools": ["add"]}],
        "tool_choice": "required",
        "max_tool_calls": 1,
        "max_output_tokens": 128,
    }
    with client.responses.create(**asked, stream=True) as stream:
        events: list[Any] = list(stream)
    whole = client.responses.create(**asked)
    kinds = [event.type for event in events]
    for kind in ("mcp_list_tools.completed", "mcp_call.in_progress", "mcp_call.completed"):
        assert kinds.count(f"response.{kind}") == 1, kinds
    assert kinds[-1] == "response.completed"
    for output in (events[-1].response.output, whole.output):
        listed, called, said = output
        assert (listed.server_label, [one.name for one in listed.tools]) == ("adder", ["add"])
        assert re.fullmatch(r"(-?\d+) and (-?\d+) are (-?\d+)", called.output), called
        assert (called.name, called.status, said.type) == ("add", "completed", "message")


def _approve(client: OpenAI, url: str) -> None:
    """The response ends at the call; the next one makes it, or tells the model that it was refused."""
    tool: Any = {"type": "mcp", "server_label": "adder", "server_url": url, "allowed_tools": ["add"]}
    asked: Any = {"model": "writer", "tools": [tool], "max_tool_calls": 1, "max_output_tokens": 128}
    for approve in (True, False):
        first = client.responses.create(**asked, input="What is two and three?", tool_choice="required")
        listed, request = first.output
        assert (first.status, listed.type, request.type) == ("completed", "mcp_list_tools", "mcp_approval_request")
        answer: Any = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}
        with client.responses.create(**asked, input=[answer], previous_response_id=first.id, stream=True) as stream:
            events: list[Any] = list(stream)
        ended = events[-1].response
        called = ended.output[1]
        assert (events[-1].type, called.approval_request_id) == ("response.completed", request.id)
        if approve:
            assert re.fullmatch(r"(-?\d+) and (-?\d+) are (-?\d+)", called.output), called
        else:
            assert "refused" in called.error.content[0]["text"], called
