"""A chat that calls a tool, while every process is killed at each boundary of the call: it ends once, as if unharmed.

    answer ──▶ the call waits ──▶ the tool runs ──▶ it has answered ──▶ the model goes on
               └─ A D             └─ A D C          └─ C                └─ A D M

A: the API is killed, D: the dispatcher, C: the worker of calls, M: the worker of the model.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL
from typing import Any

import pytest

from headrace.features.flows.task import CALL_TOOL
from headrace.store.registry.models import register_version
from tests.processes import wait_for
from tests.reliability.client import Client
from tests.reliability.conftest import Report
from tests.reliability.jobs import answer, check_ended_once
from tests.reliability.rig import LONG_LEASE_S, WAIT_S, Kept, Stack, once
from tests.workers.receiver import Answer, Receiver

MODEL = "asking"
QUESTION = "How is the weather at the mill?"
RESULT = "22 degrees"
CALL = '{"name": "weather", "arguments": {}}'
STEPS = ["answer", "answer:1", "answer:2"]
NUM_TOKENS = 100


@pytest.fixture
def tool() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.answer = lambda _: Answer(200, body=RESULT.encode())
    yield receiver
    receiver.close()


def register(stack: Stack, client: Client, tool: Receiver) -> None:
    """Register the model, that of the calls, and the tool, which hangs until it is released."""
    stack.register(MODEL)
    name = CALL_TOOL.fake_runner
    register_version(
        stack.db, model="tools", runner=name, source=name, digest=name, dtype="auto", context_window=100, actor="tests"
    )
    made = client.insist("POST", "/v1/tools", json={"name": "weather", "url": tool.url("/slow"), "timeout_ms": 60_000})
    assert made.status_code in (200, 201), made.text


def kill(*kept: Kept) -> None:
    """Kill these processes, and wait until their keepers have noticed."""
    for one in kept:
        num_exits = len(one.exits)
        one.signal(SIGKILL)
        wait_for(lambda one=one, num_exits=num_exits: len(one.exits) > num_exits, "its keeper noticed the death")


def chat(client: Client) -> str:
    """Submit the chat; return the job's id."""
    body = {
        "model": MODEL,
        "input": {"messages": [{"role": "user", "content": QUESTION}]},
        "sampling": {"max_tokens": NUM_TOKENS, "temperature": 0},
        "server_tools": {"names": ["weather"], "max_tool_calls": 1, "tool_choice": "required"},
        "max_attempts": 10,
    }
    sent = client.insist("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": "chat"})
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


# Four processes and nine deaths. The chaos run has such chats too.
@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_chat_with_a_tool_ends_once_whoever_is_killed(stack: Stack, report: Report, tool: Receiver) -> None:
    api, client = stack.api(lease_s=LONG_LEASE_S)
    dispatcher = stack.dispatcher(lease_s=LONG_LEASE_S)
    register(stack, client, tool)
    # The call takes fewer passes; so this one is in the middle of the last answer.
    model = stack.worker(MODEL, arm=once("batch.midway=kill@80"), lease_s=LONG_LEASE_S)
    with ThreadPoolExecutor(1) as readers:
        job_id = chat(client)
        stream = readers.submit(client.follow, job_id)
        waits = "SELECT id FROM jobs WHERE step = 'answer:1' AND state = 'queued' AND queue = 'tools@1'"
        (waiting,) = wait_for(lambda: stack.query(waits), "the call waits in its queue") or []
        kill(api, dispatcher)
        # In its second life the tool has answered, and the result is gone with the process.
        caller = stack.worker("tools", arm=lambda life: "finish.before=kill" if life == 1 else "", lease_s=LONG_LEASE_S)
        tool.wait_calls(1, timeout_s=WAIT_S)
        kill(api, dispatcher, caller)
        tool.wait_calls(2, timeout_s=WAIT_S)
        tool.released.set()
        wait_for(lambda: model.exits, "the model's worker died in the last answer", WAIT_S)
        kill(api, dispatcher)
        seen = stream.result(WAIT_S)
    steps = check_steps(stack, job_id)
    assert [len(kept.exits) for kept in (api, dispatcher, caller, model)] == [3, 3, 2, 1]
    keys = [call.headers["idempotency-key"] for call in tool.calls]
    assert (len(keys) >= 3, {*keys}) == (True, {waiting.id}), keys
    figures = check_ended_once(stack, [row.id for row in steps.values()])
    assert seen.is_ordered, seen.cursors
    assert [name for kind, name in seen.steps if kind == "step.finished"] == STEPS
    assert seen.text == steps["answer:2"].text
    report("F2", seed=0, calls=len(keys), keys=len({*keys}), connections=seen.num_connections, **figures)
    client.close()


def check_steps(stack: Stack, job_id: str) -> dict[str, Any]:
    """The chat and its steps ended once, with the texts that they have without faults; return the steps by name."""
    (job,) = stack.wait_ended([job_id])
    rows = stack.query("SELECT id, step, attempt, output ->> 'text' AS text FROM jobs WHERE parent_id IS NOT NULL")
    steps = {row.step: row for row in sorted(rows, key=lambda row: row.step)}
    prompt = (
        f"user: {QUESTION}\nassistant: {CALL}\nuser: Result of weather:\n{RESULT}\n\n"
        "Now answer the question in words, or call another function.\n"
    )
    texts = (CALL, RESULT, answer(prompt, NUM_TOKENS))
    assert {name: row.text for name, row in steps.items()} == dict(zip(STEPS, texts, strict=True))
    assert (job.state, (job.output or {})["text"]) == ("succeeded", steps["answer:2"].text)
    assert steps["answer:1"].attempt >= 3
    assert steps["answer:2"].attempt >= 2
    ends = stack.query("SELECT id FROM job_events WHERE job_id = :id AND kind = 'succeeded'", id=job_id)
    assert len(ends) == 1
    return steps
