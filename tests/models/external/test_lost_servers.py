"""Servers that end a stream wrongly, do not answer, or have lost a request."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from models.engine.requests import EngineError, FinishReason, SamplingParams
from models.external.network_thread import NetworkThread
from models.external.server_watch import ServerWatch
from models.external.upstream import Piece, ServerInfo, ServerLoad, UpstreamFailed, UpstreamLost, UpstreamRequest
from tests.models.external.engines import WAIT_S, wait_until
from tests.models.external.seeing_server import Eyes
from tests.models.external.test_external_engine import Script


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
        ([Piece((1,))], "the inference server ended the stream before the request's end"),
        ([Piece((1,)), KeyError("x")], "the answer of the inference server could not be read (KeyError)"),
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
    assert (seen[0], str(seen[1])) == (Piece((1,)), message)
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
        (TimeoutError(), "the inference server does not answer"),
        (KeyError("data"), "the answer of the inference server could not be read (KeyError)"),
    ],
)
def test_a_server_that_does_not_answer_is_not_used_and_says_why(
    error: Exception, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(Script):
        async def describe(self) -> ServerInfo:
            raise error

    watch, warnings = watch_once(Away(), caplog)
    assert (watch.why_not, watch.latest) == (why, None)
    assert warnings == [f"server_not_used reason={why}"]


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
    assert (script.watch.why_not, script.watch.latest) == ("a request was lost meanwhile", None)
    assert json.dumps(caplog.messages).count("a request was lost meanwhile") == 1
