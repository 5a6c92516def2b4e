"""Mock inference servers, one port each, in one process: ``python -m benchmarks.fleet.mock_servers FIRST_PORT COUNT``.

Each writes a word every ``STEP_S`` for each of at most ``MAX_RUNNING`` requests; more wait. The words depend on the
conversation alone, so an answer that goes on is checked. A line ``kill NUMBER SECONDS`` on standard input takes a
server away as a crash does, for so long; ``stats`` prints the requests that run and wait.
"""

import asyncio
import hashlib
import json
import sys
from contextlib import suppress
from typing import Any

STEP_S = 0.1
MAX_RUNNING = 8
MODEL = "words"
_WORDS = ("the", "mill", "river", "oak", "iron", "bread", "rain", "stone", "wheel", "of", "and", "runs", "cold", "old")


def word_after(text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=2).digest()
    return " " + _WORDS[int.from_bytes(digest, "big") % len(_WORDS)]


def answer(question: str, count: int, begun: str = "") -> str:
    """Return what any of the servers answers, after the text that was begun."""
    text = begun
    for _ in range(count):
        text += word_after(question + text)
    return text[len(begun) :]


class MockServer:
    """One server. It keeps its port while it is away."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.slots = asyncio.Semaphore(MAX_RUNNING)
        self.running = self.waiting = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def crash(self, away_s: float) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(away_s)
        await self.start()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        if head.startswith("post /v1/chat"):
            await self._chat(body, writer)
            return
        card = {"id": MODEL, "object": "model", "owned_by": "mock", "max_model_len": 8192}
        said = json.dumps({"object": "list", "data": [card]}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said) + said
        )
        await writer.drain()

    async def _chat(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        turns = body["messages"]
        begun = turns[-1]["content"] if body.get("continue_final_message") else ""
        question = turns[-2 if begun else -1]["content"]
        num_prompt = sum(len(turn["content"].split()) + 4 for turn in turns) - (4 if begun else 0)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            text = begun
            for number in range(1, body["max_tokens"] + 1):
                await asyncio.sleep(STEP_S)
                word = word_after(question + text)
                text += word
                finish = "length" if number == body["max_tokens"] else None
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish}
                usage = {"prompt_tokens": num_prompt, "completion_tokens": number}
                await _event(writer, json.dumps({"choices": [choice], "usage": usage}))
            await _event(writer, "[DONE]")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.running -= 1
            self.slots.release()


async def _event(writer: asyncio.StreamWriter, data: str) -> None:
    line = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n" % len(line) + line + b"\r\n")
    await writer.drain()
    if writer.transport.is_closing():
        raise ConnectionResetError


async def main(first: int, count: int) -> None:
    servers = [MockServer(first + number) for number in range(count)]
    for server in servers:
        await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    crashes: set[asyncio.Task[None]] = set()
    while line := (await reader.readline()).decode().split():
        if line[0] == "kill":
            crashes.add(asyncio.create_task(servers[int(line[1])].crash(float(line[2]))))
        else:
            found = [sum(one.running for one in servers), sum(one.waiting for one in servers)]
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
