"""Orders whose model calls a tool that the server runs, and that tool: ``python -m tests.chaos.tools PORT LOG``.

A chat has three steps: an answer that is a call, the call, and an answer in words. The result of a call names its
idempotency key, so a call that is repeated under another key is found in the text of the last step.
"""

import asyncio
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.journal import Journal
from tests.chaos.oracle import answer
from tests.chaos.receiver import Server, read_request

SHAPE = "tool"
TOOL = "mill"
MODEL = "tools"
"""The model of the task ``call_tool``."""

CALLER = "caller-1"
"""The worker of that model. A cluster has one."""

CALL = '{"name": "mill", "arguments": {}}'
MAX_TOKENS = 40
"""A call fits."""

STEPS = ("answer", "answer:1", "answer:2")
_CALLED = STEPS[1]
SLOW_S = 1.5
"""How long the first call of each second key takes: long enough that its worker is killed meanwhile."""

_AFTER_RESULTS = "Now answer the question in words, or call another function."


def tool_request(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a chat that calls the tool once. ``job``: that of the same order as a job of one step."""
    messages = [{"role": "user", "content": job["input"]["prompt"]}]
    server_tools = {"names": [TOOL], "max_tool_calls": 1, "tool_choice": "required"}
    return {**job, "input": {"messages": messages}, "server_tools": server_tools}


def result_of(key: str) -> str:
    """Return what the tool answers to a call with this idempotency key."""
    return f"turn {hashlib.sha256(key.encode()).hexdigest()[:8]}"


def tool_answers(prompt: str, max_tokens: int, call_id: str | None) -> dict[str, str]:
    """Return the text of each step by its name. ``call_id``: the id of the call's step, None if there is none yet."""
    if call_id is None:
        return {STEPS[0]: CALL}
    result = result_of(call_id)
    asked = f"user: {prompt}\nassistant: {CALL}\nuser: Result of {TOOL}:\n{result}\n\n{_AFTER_RESULTS}\n"
    return {STEPS[0]: CALL, _CALLED: result, STEPS[2]: answer(asked, max_tokens)}


class Tool(Server):
    """Answers calls, and writes each one down when it comes."""

    def __init__(self, journal: Journal, slow_s: float = SLOW_S) -> None:
        self._journal = journal
        self._slow_s = slow_s
        self._calls: Counter[str] = Counter()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, headers, body = await read_request(reader)
        key = headers.get("idempotency-key", "")
        self._calls[key] += 1
        self._journal.write("call", key=key, body=body.decode())
        if self._calls[key] == 1 and hashlib.sha256(key.encode()).digest()[0] % 2:
            await asyncio.sleep(self._slow_s)
        text = result_of(key).encode()
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + text)
        await writer.drain()


async def main(port: int, log: Path) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Tool(Journal(log)).serve, "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
