"""A live model calls a tool that the server runs; the worker of the call is killed after the tool has answered."""

from collections.abc import Iterator

import pytest

from models.catalog import register
from store.db.database import Database
from store.registry.models import register_version
from store.settings import Settings
from store.tasks.call_tool import CALL_TOOL
from tests.e2e.test_embeddings import calling
from tests.processes import StartProcess
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment
from tests.workers.receiver import Answer, Receiver

LOCAL = {"webhook_allow_http": True, "webhook_allow_networks": ("127.0.0.0/8",)}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.mark.timeout(300)
def test_a_chat_goes_on_with_what_a_tool_answered_although_its_worker_dies(
    settings: Settings,
    db: Database,
    start_process: StartProcess,
    receiver: Receiver,
    pytestconfig: pytest.Config,
) -> None:
    if not pytestconfig.getoption("--full"):
        pytest.skip("three worker processes: with --full")
    runner = CALL_TOOL.fake_runner
    tools = register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )
    benches = [Bench(db, settings, tools), Bench(db, settings, register(db, "writer", "fake", "auto", actor="tests"))]
    receiver.answer = lambda _: Answer(200, body=b"22 degrees")
    duties = [Duties(bench) for bench in benches]
    for one in duties:
        one.start()
    try:
        opened = settings.model_copy(update=LOCAL)
        with calling(opened, db, benches[0].tenant_id) as client:
            schema = {"type": "object", "properties": {"day": {"enum": ["today"]}}, "required": ["day"]}
            made = {"name": "weather", "url": receiver.url("/weather"), "parameters": schema}
            client.post("/tools", body=made, cast_to=dict[str, object])
            allowed = {"webhook_allow_http": "true", "webhook_allow_networks": "127.0.0.0/8"}
            killed = {**allowed, "environment": "test", "failpoints": "flow.before_commit=kill"}
            first = start_process(worker_command("tools"), worker_environment(settings, killed))
            start_process(worker_command("writer"), worker_environment(settings, {}))
            job = client.post(
                "/jobs",
                body={
                    "model": "writer",
                    "input": {"messages": [{"role": "user", "content": "How is the weather?"}]},
                    "sampling": {"max_tokens": 64},
                    "server_tools": {"names": ["weather"], "max_tool_calls": 1, "tool_choice": "required"},
                },
                cast_to=dict[str, object],
            )
            first.wait_exit()
            start_process(worker_command("tools"), worker_environment(settings, allowed))
            ended = client.get(f"/jobs/{job['id']}?wait=60", cast_to=dict[str, object])
        steps = benches[0].query(
            "SELECT step, attempt, output->>'text' AS text FROM jobs WHERE parent_id = :id ORDER BY step",
            id=str(job["id"]),
        )
        assert ended["status"] == "succeeded", ended
        assert [(one.step, one.attempt) for one in steps] == [("answer", 1), ("answer:1", 2), ("answer:2", 1)]
        assert steps[1].text == "22 degrees"
        assert [call.body for call in receiver.calls] == [b'{"day": "today"}'] * 2
        assert len({call.headers["idempotency-key"] for call in receiver.calls}) == 1
    finally:
        for one in duties:
            one.stop()
        for bench in benches:
            bench.close()
