"""The queue benchmark's client, against a scripted server, and its goals."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from benchmarks.queue.load import Client, Dialect, Plan
from benchmarks.queue.report import goals

DIALECT = Dialect(submit_path="/jobs", submit_body='{"n": {n}}', poll_path="/jobs/{id}")

Answer = Callable[[str, str, bytes], Awaitable[tuple[int, object]]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                length = re.search(r"Content-Length: (\d+)", head)
                status, said = await answer(method, path, await reader.readexactly(int(length[1])) if length else b"")
                body = json.dumps(said).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()
        await writer.wait_closed()

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.ensure_future(serve(reader, writer)))

    handlers: list[asyncio.Future[None]] = []
    server = await asyncio.start_server(noted, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait_for(asyncio.gather(*handlers), 10)


async def test_each_job_is_followed_to_its_own_end() -> None:
    polls: dict[str, int] = {}

    async def answer(method: str, path: str, body: bytes) -> tuple[int, object]:
        if method == "POST":
            number = json.loads(body)["n"]
            return (503, {}) if number == 5 else (202, {"id": f"job{number}"})
        polls[path] = polls.get(path, 0) + 1
        if polls[path] < 3:
            return 200, {"status": "running"}
        return 200, {"status": "failed" if path == "/jobs/job3" else "succeeded"}

    async with serving(answer) as port:
        found = await Client(Plan(port=port, dialect=DIALECT, jobs=10, concurrency=4, poll_ms=1)).run()
    assert (found.succeeded, found.failed) == (8, 1)
    assert found.errors == {"ValueError: POST answered 503: {}": 1}
    assert found.polls_per_job == 3
    assert set(polls.values()) == {3}


async def test_an_answer_that_is_the_end_is_read_for_what_it_says() -> None:
    async def answer(method: str, path: str, body: bytes) -> tuple[int, object]:
        return 200, {"status": "running" if json.loads(body)["n"] == 2 else "succeeded"}

    dialect = replace(DIALECT, poll_path=None)
    async with serving(answer) as port:
        found = await Client(Plan(port=port, dialect=dialect, jobs=5, concurrency=2)).run()
    assert (found.succeeded, found.failed, found.polls_per_job) == (4, 1, 0)


async def test_no_more_jobs_are_in_flight_than_there_are_users() -> None:
    in_flight, most = set[str](), 0

    async def answer(method: str, path: str, body: bytes) -> tuple[int, object]:
        nonlocal most
        if method == "POST":
            job_id = str(json.loads(body)["n"])
            in_flight.add(job_id)
            most = max(most, len(in_flight))
            return 202, {"id": job_id}
        in_flight.discard(path.removeprefix("/jobs/"))
        return 200, {"status": "succeeded"}

    async with serving(answer) as port:
        found = await Client(Plan(port=port, dialect=DIALECT, jobs=40, concurrency=6, poll_ms=5)).run()
    assert (found.succeeded, most) == (40, 6)


async def test_the_open_loop_counts_a_submit_from_when_it_was_due() -> None:
    """A server that answers one request at a time, each in 20 ms, when 200 a second come: they must queue."""
    turn = asyncio.Lock()

    async def answer(method: str, path: str, body: bytes) -> tuple[int, object]:
        async with turn:
            await asyncio.sleep(0.02)
        return 200, {}

    dialect = Dialect(submit_path="/predict", submit_body="{}", state_field=None)
    async with serving(answer) as port:
        found = await Client(Plan(port=port, dialect=dialect, jobs=40, rate=200.0)).run()
    assert found.succeeded == 40
    # The last ones came after about 0.2 s and were answered after 0.8 s.
    assert found.submit_p99_ms > 300


def found(**changes: object) -> dict[str, object]:
    ours = {"per_job": {"write_commits": 0.1}, "failed": 0, "errors": {}}
    steady = {"rate": 300.0, "jobs": 6000, "succeeded": 6000, "submit_p99_ms": 20.0}
    return {
        "contestants": {"headrace": ours | changes.pop("ours", {})},
        "headrace_times": {"a-prefork": 1.6, "a-threads": 1.5, "b-prefork": 2.6, "litserve": 0.4} | changes,
        "steady": steady | changes.pop("steady", {}),
    }


def test_goals_that_are_reached_are_not_mentioned() -> None:
    assert goals(found()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a-threads": 1.4}, "1.4 × (a), the goal is 1.5 ×"),
        ({"b-prefork": 2.4}, "2.4 × (b), the goal is 2.5 ×"),
        ({"ours": {"per_job": {"write_commits": 0.3}}}, "0.3 write commits a job"),
        ({"ours": {"failed": 2}}, "2 jobs failed"),
        ({"steady": {"submit_p99_ms": 50.0}}, "submit p99 50.0 ms"),
        ({"steady": {"succeeded": 5999}}, "1 jobs of the open loop did not succeed"),
    ],
)
def test_a_missed_goal_is_said(changes: dict[str, object], said: str) -> None:
    assert [said in sentence for sentence in goals(found(**changes))] == [True]
