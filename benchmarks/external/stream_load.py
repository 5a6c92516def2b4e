"""A client that reads many streams at once and costs little: a process of its own that counts bytes, not texts.

``python -m benchmarks.external.stream_load`` reads a Plan as JSON from its input, opens the streams, and prints a
Measured as JSON. The server speaks OpenAI's text or chat completions with server-sent events.
"""

import asyncio
import dataclasses
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.queue.wire import encode

_GIVE_UP_S = 300


@dataclass(frozen=True)
class Plan:
    """One stream for each body, ``gap_s`` after the one before; 0 opens all at the same moment."""

    port: int
    path: str
    bodies: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)
    gap_s: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Times in seconds; a first event's from its own request. ``events`` are ``data:`` lines without ``[DONE]``."""

    ended: int
    errors: dict[str, int]
    seconds: float
    first_event_p50_s: float
    events: int
    client_cpu_s: float


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.asked_at = time.perf_counter()
        self.first_at: float | None = None
        self.num_events = 0
        self.status = b""
        self.is_whole = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self.status = data[9:12]
            if self.status != b"200":
                self._transport.close()
        joined = self._tail + data
        self.num_events += joined.count(b"\ndata: ")
        self._tail = joined[-6:]
        if self.first_at is None and self.num_events:
            self.first_at = time.perf_counter()
        if b"[DONE]" in data:  # written in one piece by both servers
            self.is_whole = True
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _run(plan: Plan) -> Measured:
    loop = asyncio.get_running_loop()
    started_at = time.perf_counter()

    async def one(number: int, body: str) -> _Stream:
        await asyncio.sleep(number * plan.gap_s)
        headers = {**plan.headers, "Connection": "close"}
        request = encode("POST", "127.0.0.1", plan.path, headers, body.encode())
        _, stream = await loop.create_connection(lambda: _Stream(request), "127.0.0.1", plan.port)
        await asyncio.wait_for(stream.ended, _GIVE_UP_S)
        return stream

    streams = await asyncio.gather(*(one(*each) for each in enumerate(plan.bodies)))
    seconds = time.perf_counter() - started_at
    bad = [stream.status.decode() if stream.status != b"200" else "cut" for stream in streams if not stream.is_whole]
    firsts = sorted(stream.first_at - stream.asked_at for stream in streams if stream.first_at is not None)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Measured(
        ended=sum(stream.is_whole for stream in streams),
        errors={reason: bad.count(reason) for reason in set(bad)},
        seconds=seconds,
        first_event_p50_s=firsts[len(firsts) // 2] if firsts else 0.0,
        events=sum(stream.num_events - stream.is_whole for stream in streams),
        client_cpu_s=used.ru_utime + used.ru_stime,
    )


def read_streams(plan: Plan) -> Measured:
    """Run the client as a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.external.stream_load"]
    done = subprocess.run(argv, input=json.dumps(dataclasses.asdict(plan)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the client failed: {done.stderr[-500:]}")
    return Measured(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(uvloop.run(_run(Plan(**json.loads(sys.stdin.read())))))))
