"""An inference server without a model, in a thread: real HTTP on a real port, and every fault of a real one on demand.

It runs ``max_running`` requests together, one token each a step, in the order of their priority. A subclass speaks the
API of one server.
"""

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from tests.models.external.fake_model import Call

WAIT_S = 60.0


class Answer:
    """Writes the answer to one HTTP request."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(
        self, status: int, body: bytes, kind: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        fields = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)
        await self._writer.drain()

    async def json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        await self.send(status, json.dumps(value).encode(), headers=headers)

    async def begin_stream(self) -> None:
        self._writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def event(self, value: object) -> None:
        data = f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()

    async def end_stream(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()


class Generated(NamedTuple):
    """One token of a request, how many there are with it, and why the request ends with it."""

    token: int | None
    num_output: int
    finish: str | None


class FakeServer(ABC):
    """Started on construction. Attributes may be changed from the test's thread at any time."""

    def __init__(self, *, max_running: int = 8, step_s: float = 0.001, kv_tokens: int = 65536) -> None:
        self.max_running = max_running
        self.step_s = step_s
        self.kv_tokens = kv_tokens
        self.calls: list[Call] = []
        """All requests for output, as they came."""
        self.traced: list[tuple[str, str]] = []
        """The path and the header ``traceparent`` of each request that has one."""
        self.keys: list[str | None] = []
        """The header ``authorization`` of each request."""
        self.aborted: list[str] = []
        """The ids of requests that ended by an abort, or because their connection was closed."""
        self.num_tokens = 0
        self.num_starts = 0
        self.most_waiting = 0
        self._is_hung = False
        self._answers = asyncio.Event()
        self._answers.set()
        self._open: dict[str, tuple[Call, asyncio.Queue[Generated]]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.finish(self.listen())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> list[Call]:
        """The requests that generate: the first ones in the order of priority and age."""
        # A copy: the server's thread may add a request meanwhile.
        ordered = sorted((call for call, _ in list(self._open.values())), key=lambda call: call.priority)
        return ordered[: self.max_running]

    @property
    def num_waiting(self) -> int:
        return max(0, len(self._open) - self.max_running)

    @property
    def kv_use(self) -> float:
        return min(1.0, sum(len(call.prompt) + len(call.output) for call in self.running) / self.kv_tokens)

    @abstractmethod
    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        """Answer one request."""

    def hang(self) -> None:
        """Make no more steps: the engine hangs, while the HTTP server answers."""
        self._is_hung = True

    def freeze(self) -> None:
        """Answer nothing any more, as after SIGSTOP."""
        self._is_hung = True
        self.loop.call_soon_threadsafe(self._answers.clear)

    def go_on(self) -> None:
        self._is_hung = False
        self.loop.call_soon_threadsafe(self._answers.set)

    def restart(self, away_s: float = 0.0) -> None:
        """Die with all requests and connections, and come back at the same address."""
        self.finish(self.die())
        if away_s:
            threading.Event().wait(away_s)
        self.finish(self.listen())

    def close(self) -> None:
        self.finish(self.die())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.num_starts += 1
        self._spawn(self._run())

    async def die(self) -> None:
        # Accept no more before the server is closed: asyncio's task of a connection that was just accepted fails in a
        # closed server, or if it is cancelled before its start, and then nothing closes the socket.
        for socket in self._server.sockets:
            self.loop.remove_reader(socket.fileno())
        await asyncio.sleep(0)
        self._server.close()
        # All tasks of the loop: asyncio's own, too, which make a transport of a connection just accepted.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._open.clear()
        await asyncio.sleep(0)  # the aborted transports close their sockets in the next turn of the loop

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            self.most_waiting = max(self.most_waiting, self.num_waiting)
            for call in [] if self._is_hung else self.running:
                token = call.advance()
                self.num_tokens += 1
                self._open[call.id][1].put_nowait(Generated(token, len(call.output), call.finish))
                if call.finish is not None:
                    del self._open[call.id]

    async def tokens(self, call: Call) -> AsyncGenerator["Generated", None]:
        """Run a request and yield its tokens. If it is aborted, the last one has no token."""
        self.calls.append(call)
        queue: asyncio.Queue[Generated] = asyncio.Queue()
        self._open[call.id] = (call, queue)
        try:
            while True:
                generated = await queue.get()
                yield generated
                if generated.finish is not None:
                    return
        finally:
            self.abort(call.id)

    def abort(self, request_id: str) -> None:
        """End a request, if it is running or waiting."""
        found = self._open.pop(request_id, None)
        if found is not None:
            self.aborted.append(request_id)
            found[1].put_nowait(Generated(None, len(found[0].output), "abort"))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                    lengths = [line for line in head if line.lower().startswith("content-length:")]
                    data = await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b"{}"
                    await self._answers.wait()
                    method, path, _ = head[0].split(" ")
                    fields = dict(line.split(": ", 1) for line in head[1:] if line)
                    if "traceparent" in fields:
                        self.traced.append((path, fields["traceparent"]))
                    self.keys.append(fields.get("authorization"))
                    answering = asyncio.ensure_future(self.answer(method, path, json.loads(data), Answer(writer)))
                    closing = asyncio.ensure_future(_closed(reader))
                    try:
                        await asyncio.wait({answering, closing}, return_when=asyncio.FIRST_COMPLETED)
                        if not answering.done():
                            return
                        answering.result()
                    finally:
                        closing.cancel()
                        answering.cancel()
                        await asyncio.gather(answering, closing, return_exceptions=True)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def finish(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)


async def _closed(reader: asyncio.StreamReader) -> None:
    """Return when the client closes its side. A client sends nothing while it waits for an answer."""
    while not reader.at_eof():  # noqa: ASYNC110 - a read would take the first byte of the next request
        await asyncio.sleep(0.005)
