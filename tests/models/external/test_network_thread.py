"""The thread that talks to a server: what a request's stream does at its end, and what is left of it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence

from headrace.models.engine.requests import EngineError, FinishReason, SamplingParams
from headrace.models.external.network_thread import NetworkThread
from headrace.models.external.upstream import Capabilities, Piece, ServerInfo, ServerLoad, UpstreamRequest
from tests.models.external.engines import WAIT_S, wait_until
from tests.threads import threads_named


class Slow:
    """Gives one piece, and keeps the stream open until it is told to end."""

    capabilities = Capabilities()

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.num_ended = 0
        self.aborted: list[str] = []

    async def describe(self) -> ServerInfo:
        return ServerInfo(None, ())

    async def load(self) -> ServerLoad:
        return ServerLoad(0, 0)

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        yield Piece((1,), finish=FinishReason(request.model) if request.model else None)
        await asyncio.to_thread(self.may_end.wait, WAIT_S)
        self.num_ended += 1

    async def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids

    async def close(self) -> None:
        pass


def test_the_end_of_a_stream_does_not_end_a_later_request_with_the_same_id() -> None:
    upstream, others = Slow(), threads_named("network")
    network = NetworkThread(upstream, lambda: asyncio.sleep(0))
    network.start()
    first: list[Piece | EngineError] = []
    second: list[Piece | EngineError] = []
    try:
        network.send(UpstreamRequest("one", "stop", (1,), SamplingParams(1)), first.append)
        wait_until(lambda: len(first) == 1)
        network.send(UpstreamRequest("one", "", (1,), SamplingParams(1)), second.append)
        wait_until(lambda: len(second) == 1)
        upstream.may_end.set()
        wait_until(lambda: len(second) == 2)
        assert isinstance(second[1], EngineError), "its own stream has ended without a finish reason"
        wait_until(lambda: upstream.num_ended == 2)
    finally:
        network.stop(WAIT_S)
    assert threads_named("network") == others
    # A request's error comes before its abort, which a stop waits for.
    assert upstream.aborted == ["one"]
    assert len(first) == 1


def test_requests_that_end_together_are_aborted_in_one_call_and_again_by_a_stop() -> None:
    upstream = Slow()
    calls: list[Sequence[str]] = []

    async def abort(request_ids: Sequence[str]) -> None:
        calls.append(list(request_ids))

    upstream.abort = abort
    network = NetworkThread(upstream, lambda: asyncio.sleep(0))
    network.start()
    seen: list[Piece | EngineError] = []

    def end_two(event: Piece | EngineError) -> None:
        """Called on the network's own thread, so that both ends are in one turn of its loop."""
        seen.append(event)
        if len(seen) == 4:
            network.end("one")
            network.end("two")

    for name in ("one", "two", "three", "four"):
        network.send(UpstreamRequest(name, "", (1,), SamplingParams(1)), end_two)
    wait_until(lambda: calls == [["one", "two"]])
    network.stop(WAIT_S)
    assert calls == [["one", "two"], ["three", "four"]]
    upstream.may_end.set()
