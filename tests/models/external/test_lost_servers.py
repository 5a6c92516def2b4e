"""Servers that end a stream wrongly, do not answer, or have lost a request."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from headrace.models.engine.requests import EngineError, FinishReason, SamplingParams
from headrace.models.external.network_thread import NetworkThread
from headrace.models.external.server_client import ServerClient
from headrace.models.external.server_watch import ServerWatch
from headrace.models.external.upstream import (
    Piece,
    ServerInfo,
    ServerLoad,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRequest,
)
from tests.models.external.engines import WAIT_S, wait_until
from tests.models.external.seeing_server import Eyes
from tests.models.external.test_external_engine import Clocked, Script, ask, on
from tests.refusals import Naming

__all__ = ["on"]


@pytest.fixture
def network() -> Iterator[tuple[Eyes, NetworkThread]]:
    upstream = Eyes()
    thread = NetworkThread(upstream, lambda: asyncio.sleep(0))
    thread.start()
    yield upstream, thread
    thread.stop(WAIT_S)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([Piece((1,))], "ended the stream"),
        ([Piece((1,)), KeyError("x")], "(KeyError)"),
        ([Piece((1,)), UpstreamFailed("its own")], "its own"),
    ],
)
def test_a_stream_that_ends_wrongly_is_one_error_and_an_abort(
    network: tuple[Eyes, NetworkThread], pieces: list[Any], message: str
) -> None:
    upstream, thread = network
    aborted: list[str] = []

    async def abort(request_ids: Any) -> None:
        aborted.extend(request_ids)
        raise UpstreamLost("the abort fails too")

    upstream.abort = abort
    upstream.pieces = pieces
    seen: list[Piece | EngineError] = []
    thread.send(UpstreamRequest("one", "m", (1,), SamplingParams(1)), seen.append)
    wait_until(lambda: len(seen) == 2 and aborted == ["one"])
    assert seen[0] == Piece((1,))
    assert message in str(seen[1])
    upstream.pieces = [Piece((1,), finish=FinishReason.STOP)]
    thread.send(UpstreamRequest("two", "m", (1,), SamplingParams(1)), seen.append)
    wait_until(lambda: len(seen) == 3)
    thread.stop(WAIT_S)
    assert aborted == ["one"], "a request that has ended by itself is not aborted"
    assert len(seen) == 3


def watch_once(script: Script, caplog: pytest.LogCaptureFixture) -> tuple[ServerWatch, list[str]]:
    """Watch a server for a moment; return the watch and its warnings."""
    watch = ServerWatch(script, refuse=lambda info: None, on_change=lambda: None, poll_s=0.001, clock=lambda: 1.0)

    async def moment() -> None:
        task = asyncio.create_task(watch.run())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.WARNING):
        asyncio.run(moment())
    return watch, [message for message in caplog.messages if message.startswith("server_not_used")]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UpstreamLost("it is away"), "it is away"),
        (TimeoutError(), "does not answer"),
        (KeyError("data"), "(KeyError)"),
    ],
)
def test_a_server_that_does_not_answer_is_not_used_and_says_why(
    error: Exception, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(Script):
        async def describe(self) -> ServerInfo:
            raise error

    watch, warnings = watch_once(Away(), caplog)
    assert (watch.why_not, watch.latest) == (Naming(why), None)
    assert warnings == [f"server_not_used reason={watch.why_not}"]


def test_an_answer_while_a_request_was_lost_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    class Losing(Script):
        watch: ServerWatch

        async def load(self) -> ServerLoad:
            self.watch.doubt()
            return ServerLoad(0, 0)

    script = Losing()
    script.watch = ServerWatch(script, refuse=lambda info: None, on_change=lambda: None, poll_s=9, clock=lambda: 1.0)

    async def moment() -> None:
        task = asyncio.create_task(script.watch.run())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(moment())
    assert (script.watch.why_not, script.watch.latest) == (Naming("lost"), None)
    assert json.dumps(caplog.messages).count(str(script.watch.why_not)) == 1


def replace_server(on: Clocked, *, is_away: bool, **load: Any) -> None:
    """Put another server at the address of the first. The connections to that one are half open and say nothing."""
    if is_away:
        answers, on.script.load = on.script.load, on.script.silence
        wait_until(lambda: on.engine.why_not == "it is silent")
        on.script.now = ServerLoad(0, 0, **load)
        on.script.load = answers
        return
    on.see(**load)


@pytest.mark.parametrize("is_away", [False, True], ids=["at once", "after a silence"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"started_at": 1.0, "num_tokens": 5}, {"started_at": 2.0, "num_tokens": 9}),
        ({"num_tokens": 5}, {"num_tokens": 4}),
    ],
    ids=["says when it started", "counts its tokens"],
)
def test_requests_to_a_server_that_was_replaced_end(
    on: Clocked, before: dict[str, Any], after: dict[str, Any], *, is_away: bool
) -> None:
    on.see(**before)
    lost = on.engine.submit(ask("lost"))
    wait_until(lambda: len(on.script.sent) == 1)
    replace_server(on, is_away=is_away, **after)
    with pytest.raises(UpstreamLost) as error:
        lost.result(WAIT_S)
    assert error.value.retryable
    wait_until(lambda: on.engine.why_not is None)
    kept = on.engine.submit(ask("kept"))
    on.see(**after, running=1)
    assert not kept.done(), "it was sent to the new server"


def test_requests_stay_when_a_server_was_only_silent(on: Clocked) -> None:
    on.see(started_at=1.0, num_tokens=5)
    kept = on.engine.submit(ask("kept"))
    wait_until(lambda: len(on.script.sent) == 1)
    replace_server(on, is_away=True, started_at=1.0, num_tokens=5)
    wait_until(lambda: on.engine.why_not is None)
    on.see(started_at=1.0, num_tokens=6)
    assert not kept.done()


def timer_of(port: int) -> str:
    """Return the kernel's timer of the connection to a port of this machine; "02" is the one of keepalive."""
    remote = f"{struct.unpack('=I', socket.inet_aton('127.0.0.1'))[0]:08X}:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return next((row[5].partition(":")[0] for row in rows if row[2] == remote), "")


async def test_the_kernel_watches_a_connection_on_which_nothing_comes() -> None:
    """So a stream ends although the server's machine is gone, and sends nothing any more."""

    has_ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await writer.drain()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        has_ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    client = ServerClient(f"http://127.0.0.1:{port}")
    async with server, asyncio.timeout(WAIT_S):
        async with aclosing(client.stream("/", {})) as events:
            assert await anext(events) == b"1"
            await asyncio.to_thread(wait_until, lambda: timer_of(port) == "02")
        await client.close()
        await has_ended.wait()
