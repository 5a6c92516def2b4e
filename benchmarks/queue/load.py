"""The client that every contestant meets: a process of its own that submits jobs and polls each to its end.

``python -m benchmarks.queue.load`` reads a Plan as JSON from its first line of input, writes ``ready``, waits for a
line, works, and prints a Measured as JSON. It knows HTTP and a contestant's Dialect; it does not know who the
contestant is.

Closed loop: ``concurrency`` users, each with one job at a time. Open loop (``rate`` > 0): jobs come at random times of
that mean rate whatever the server does, and a submit's time counts from the moment at which it was due.
"""

import asyncio
import dataclasses
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.queue.wire import Connection, encode

_GIVE_UP_S = 60


@dataclass(frozen=True)
class Dialect:
    """How one contestant is spoken to. ``{n}`` stands for the job's number and ``{id}`` for what the submit returned.

    ``poll_path`` None: the submit's answer is the end; with ``state_field`` None its coming is enough.
    """

    submit_path: str
    submit_body: str
    poll_path: str | None = None
    id_field: str = "id"
    state_field: str | None = "status"
    succeeded: tuple[str, ...] = ("succeeded",)
    failed: tuple[str, ...] = ("failed",)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The load and its target. ``max_s`` ends the submitting early; jobs in flight are still followed to their end."""

    port: int
    dialect: Dialect
    jobs: int
    concurrency: int = 64
    poll_ms: float = 50.0
    max_s: float = 60.0
    rate: float = 0.0
    host: str = "127.0.0.1"
    seed: int = 7


@dataclass
class Measured:
    """What the client saw. Times in ms; ``client_cpu_s`` is its own."""

    succeeded: int
    failed: int
    errors: dict[str, int]
    seconds: float
    jobs_per_s: float
    submit_p50_ms: float
    submit_p99_ms: float
    total_p50_ms: float
    total_p99_ms: float
    polls_per_job: float
    client_cpu_s: float


class Client:
    """Runs one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._submit_s: list[float] = []
        self._total_s: list[float] = []
        self._num_polls = 0
        self._ends: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._began = self._ended = 0.0
        self._free: list[Connection] = []

    async def run(self) -> Measured:
        """Work through the plan."""
        cpu = _cpu_s()
        self._began = self._ended = time.perf_counter()
        await (self._open_loop() if self._plan.rate else self._closed_loop())
        for connection in self._free:
            connection.close()
        seconds = self._ended - self._began
        return Measured(
            succeeded=self._ends["succeeded"],
            failed=self._ends["failed"],
            errors=dict(self._errors),
            seconds=round(seconds, 3),
            jobs_per_s=round(self._ends["succeeded"] / seconds, 1) if seconds else 0.0,
            submit_p50_ms=_quantile(self._submit_s, 0.5),
            submit_p99_ms=_quantile(self._submit_s, 0.99),
            total_p50_ms=_quantile(self._total_s, 0.5),
            total_p99_ms=_quantile(self._total_s, 0.99),
            polls_per_job=round(self._num_polls / max(1, len(self._total_s)), 2),
            client_cpu_s=round(_cpu_s() - cpu, 3),
        )

    async def _closed_loop(self) -> None:
        numbers = iter(range(self._plan.jobs))

        async def user() -> None:
            for number in numbers:
                if time.perf_counter() - self._began > self._plan.max_s:
                    return
                await self._job(number, time.perf_counter())

        await asyncio.gather(*(user() for _ in range(self._plan.concurrency)))

    async def _open_loop(self) -> None:
        draw = random.Random(self._plan.seed)
        due, running = self._began, set()
        for number in range(self._plan.jobs):
            due += draw.expovariate(self._plan.rate)
            if due - self._began > self._plan.max_s:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._job(number, due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _job(self, number: int, due: float) -> None:
        connection = self._free.pop() if self._free else Connection(self._plan.host, self._plan.port)
        try:
            end = await self._follow(connection, number, due)
        except (OSError, ValueError, KeyError) as error:
            connection.close()
            self._errors[f"{type(error).__name__}: {error}"[:200]] += 1
            return
        self._free.append(connection)
        self._ends[end] += 1
        self._ended = time.perf_counter()
        self._total_s.append(self._ended - due)

    async def _follow(self, connection: Connection, number: int, due: float) -> str:
        dialect = self._plan.dialect
        body = dialect.submit_body.replace("{n}", str(number)).encode()
        answer = await self._call(connection, "POST", dialect.submit_path, body)
        self._submit_s.append(time.perf_counter() - due)
        if dialect.state_field is None:
            return "succeeded"
        if dialect.poll_path is None:
            return "succeeded" if answer[dialect.state_field] in dialect.succeeded else "failed"
        path = dialect.poll_path.replace("{id}", answer[dialect.id_field])
        while time.perf_counter() - due < _GIVE_UP_S:
            await asyncio.sleep(self._plan.poll_ms / 1000)
            self._num_polls += 1
            state = (await self._call(connection, "GET", path))[dialect.state_field]
            if state in dialect.succeeded:
                return "succeeded"
            if state in dialect.failed:
                return "failed"
        raise ValueError(f"not ended within {_GIVE_UP_S} s")

    async def _call(self, connection: Connection, method: str, path: str, body: bytes = b"") -> Any:
        data = encode(method, self._plan.host, path, self._plan.dialect.headers, body)
        status, answer = await connection.request(data)
        if status >= 400:
            raise ValueError(f"{method} answered {status}: {answer[:150].decode(errors='replace')}")
        return json.loads(answer)


def _quantile(values: list[float], share: float) -> float:
    """Return a quantile in ms; 0 of nothing."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_load(plan: Plan, on_start: Callable[[], None] = lambda: None) -> Measured:
    """Run the plan in a process of its own; ``on_start`` is called when that stands ready, just before it begins."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.queue.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(dataclasses.asdict(plan)) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        on_start()
        said, _ = process.communicate("go\n")
    if process.returncode:
        raise RuntimeError(f"the load client ended with {process.returncode}")
    return Measured(**json.loads(said))


def main() -> None:
    given = json.loads(sys.stdin.readline())
    plan = Plan(**{**given, "dialect": Dialect(**given["dialect"])})
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(dataclasses.asdict(uvloop.run(Client(plan).run()))))


if __name__ == "__main__":
    main()
