"""Time-outs of calls of tools: ``python -m benchmarks.tool_timeouts``.

A server on this machine stops at one point of a call: before it accepts the connection, before the first byte, in the
head, in the body, or behind the body without an end. Each call has a deadline of ``--deadline-ms``; how much later it
returned is its overrun. The calls go through the caller of the worker (``tools.tool_caller`` of flows), with two
tries within the deadline, one by one and ``--parallel`` at a time. Prints a table and, as its last line, JSON; ends
with 1 if an overrun is more than ``MOST_S`` or a call has another result than a time-out.
"""

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from headrace.features.flows.tools.tool_caller import ToolCaller
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.features.flows.tools.tool_results import ToolOrder
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.logs import configure_logging
from headrace.store.settings import Settings

MOST_S = 1.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
POINTS = {
    "first byte": b"",
    "half a head": HEAD[:30],
    "half a body": HEAD + b"content-length: 400\r\n\r\n" + b"x" * 200,
    "after the answer": HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
}
"""What the server sends before it falls silent."""

console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """The overruns of the calls at one point, in seconds, and how many calls had a result other than a time-out."""

    point: str
    at_a_time: int
    num_calls: int
    median_s: float
    worst_s: float
    num_others: int


@contextmanager
def silent_server(sent: bytes) -> Iterator[int]:
    """Yield the port of a server that reads a request, sends ``sent`` and nothing more."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65_536)
            connection.sendall(sent)
            over.wait()

    def accept() -> None:
        with suppress(OSError):
            while not over.is_set():
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            over.set()
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@contextmanager
def full_server() -> Iterator[int]:
    """Yield the port of a server whose queue of connections is full: a further connection gets no answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        try:
            yield listening.getsockname()[1]
        finally:
            for one in waiting:
                one.close()


def overrun(port: int, deadline_s: float) -> tuple[float, bool]:
    """Make one call; return how much later than its deadline it returned, and whether it was a time-out."""
    settings = Settings(webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
    caller = ToolCaller(GuardedClient(settings), context_window=1, most_of_one=1)
    tool = HttpTool(url=f"http://127.0.0.1:{port}/", timeout_ms=round(deadline_s * 1000), max_attempts=2)
    start = time.monotonic()
    found = caller.call(ToolOrder("silent", "{}", "tenant", "job", tool))
    return time.monotonic() - start - deadline_s, "gave no answer within" in found.text


def measure(point: str, port: int, deadline_s: float, num_calls: int, at_a_time: int) -> Row:
    """Make calls of a server that stops at this point."""
    with ThreadPoolExecutor(at_a_time) as threads:
        found = [*threads.map(lambda _: overrun(port, deadline_s), range(num_calls))]
    late = sorted(seconds for seconds, _ in found)
    others = sum(not is_timeout for _, is_timeout in found)
    return Row(point, at_a_time, num_calls, late[len(late) // 2], late[-1], others)


def rows(deadline_s: float, num_calls: int, parallel: int) -> Iterator[Row]:
    """Yield the measurements: each point one call at a time, then several at a time."""
    for at_a_time in (1, parallel):
        with full_server() as port:
            yield measure("connect", port, deadline_s, num_calls, at_a_time)
        for point, sent in POINTS.items():
            with silent_server(sent) as port:
                yield measure(point, port, deadline_s, num_calls, at_a_time)


def show(found: Sequence[Row]) -> None:
    """Print the table, and the rows as JSON."""
    table = Table("silent at", "calls at a time", "calls", "median overrun ms", "worst ms", "other results")
    for row in found:
        figures = (f"{1000 * row.median_s:.0f}", f"{1000 * row.worst_s:.0f}")
        table.add_row(row.point, str(row.at_a_time), str(row.num_calls), *figures, str(row.num_others))
    console.print(table)
    print(json.dumps([asdict(row) for row in found]))


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description="time-outs of calls of tools")
    parser.add_argument("--deadline-ms", type=int, default=500)
    parser.add_argument("--calls", type=int, default=10, help="at each point")
    parser.add_argument("--parallel", type=int, default=8)
    options = parser.parse_args()
    configure_logging("error")
    found = [*rows(options.deadline_ms / 1000, options.calls, options.parallel)]
    show(found)
    return int(any(row.worst_s > MOST_S or row.num_others for row in found))


if __name__ == "__main__":
    sys.exit(main())
