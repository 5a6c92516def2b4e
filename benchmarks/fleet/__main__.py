"""A day's load on a simulated fleet: ``python -m benchmarks.fleet --router PROGRAM``.

PROGRAM is the ``vllm-router`` of an environment that has it.

Mock servers (``mock_servers``) behind vLLM's router, one Headrace (API, dispatcher, one worker) before it. One quiet
tenant sends a job every two seconds, first alone, then while nine others send a day's curve pressed into ``--minutes``:
little at its ends, most in the middle. Meanwhile servers are taken away one after the other, and the router once.
Every answer is compared with the text that a mock server writes for its prompt. Prints JSON and writes a drawing: jobs
lost, answers that differ, the quiet tenant's time to its first token, and the CPU time of each layer for a job. With
``--autoscale 1..4`` a host runs as many workers of ``--slots`` requests as the scaler decides, and its decisions are
printed and drawn.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console

from benchmarks.fleet import mock_servers
from benchmarks.fleet.drawing import Sample, svg
from benchmarks.queue import headrace
from benchmarks.queue.services import running_services
from headrace.store.db.database import Database
from headrace.store.ports import free_port
from headrace.store.tenants.api_keys import create_key, create_tenant

console = Console(stderr=True)
_NAME = "fleet"
_QUIET_EVERY_S = 2.0
_AWAY_S = 15.0
_SAMPLE_S = 2.0
_END_S = 120.0  # for the last jobs
_FIRST_PORT = 21000


@dataclass
class Found:
    """What the callers counted. ``decisions``: of the scaler, each with its second and its reason."""

    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    first_s: dict[str, list[float]] = field(default_factory=lambda: {"alone": [], "beside": []})
    samples: list[Sample] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)

    @property
    def under_way(self) -> int:
        return self.accepted - self.ended.total()


class Router:
    """vLLM's router before all servers. It says that it is ready once it has seen them all."""

    def __init__(self, program: str, port: int, servers: list[str]) -> None:
        self.port = port
        self._argv = [program, "--port", str(port), "--prometheus-port", str(free_port("127.0.0.1", 0))]
        self._argv += ["--policy", "consistent_hash", "--health-check-interval-secs", "2", "--log-level", "warning"]
        self._argv += ["--cb-failure-threshold", "2", "--worker-urls", *servers]

    async def start(self) -> None:
        null = asyncio.subprocess.DEVNULL
        self._child = await asyncio.create_subprocess_exec(*self._argv, stdout=null, stderr=null)
        async with httpx2.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=5)).is_success:
                        return
                except httpx2.TransportError:
                    await asyncio.sleep(0.2)

    @property
    def pid(self) -> int:
        return self._child.pid

    async def kill(self) -> None:
        self._child.kill()
        await self._child.wait()


class Caller:
    """One tenant's client."""

    def __init__(self, port: int, key: str, found: Found, tokens: int, service_class: str) -> None:
        limits = httpx2.Limits(max_connections=None)
        self._http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            limits=limits,
            timeout=180,
            trust_env=False,
        )
        self._found = found
        self._tokens = tokens
        self._service_class = service_class

    async def job(self, question: str, times: list[float] | None = None) -> None:
        """Submit a job, wait for its end, and compare it. ``times`` gets the seconds to its first token."""
        body = {"model": _NAME, "input": {"messages": [{"role": "user", "content": question}]}}
        body["service_class"] = self._service_class
        sampling = {"max_tokens": self._tokens, "temperature": 0}
        began = time.monotonic()
        submitted = await self._http.post("/v1/jobs", json=body | {"sampling": sampling})
        if submitted.status_code != httpx2.codes.ACCEPTED:
            self._found.refused[submitted.status_code] += 1
            return
        self._found.accepted += 1
        path = f"/v1/jobs/{submitted.json()['id']}"
        if times is not None:
            async with self._http.stream("GET", f"{path}/events") as events:
                async for line in events.aiter_lines():
                    if line.startswith("event: job.delta"):
                        times.append(time.monotonic() - began)
                        break
        while (job := (await self._http.get(path, params={"wait": 30})).json())["status"] in ("queued", "running"):
            pass
        self._found.ended[job["status"]] += 1
        text = (job.get("output") or {}).get("text")
        self._found.wrong += text != mock_servers.answer(question, self._tokens)

    async def close(self) -> None:
        await self._http.aclose()


async def quiet(caller: Caller, seconds: float, times: list[float], name: str) -> None:
    """Send a job every ``_QUIET_EVERY_S`` seconds; earlier jobs may still run."""
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds / _QUIET_EVERY_S)):
            group.create_task(caller.job(f"quiet {name} {number}", times))
            await asyncio.sleep(_QUIET_EVERY_S)


async def day(callers: list[Caller], seconds: float, per_s: float, chance: random.Random) -> None:
    """Send the others' jobs: a sine from a tenth of the peak to the peak and back; ``per_s`` is the mean."""
    began, numbers = time.monotonic(), itertools.count()
    async with asyncio.TaskGroup() as group:
        while (at := time.monotonic() - began) < seconds:
            shape = 0.1 + 0.9 * math.sin(math.pi * at / seconds) ** 2
            await asyncio.sleep(chance.expovariate(per_s * shape / 0.55))
            group.create_task(chance.choice(callers).job(f"day {next(numbers)}"))


class Scaler:
    """Reads what the scaler decides, and how many workers there are."""

    def __init__(self, stack: headrace.Stack, found: Found) -> None:
        self._http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{stack.port}",
            headers={"Authorization": f"Bearer {stack.api_key}"},
            timeout=30,
            trust_env=False,
        )
        self._found = found
        self._wanted = 0

    async def look(self, at: float) -> tuple[int, int]:
        """Return how many workers are wanted, and how many have a process. A new decision is noted."""
        decided = (await self._http.get(f"/v1/queues/{_NAME}@1/scaling")).raise_for_status().json()
        if decided["workers"] != self._wanted:
            self._wanted = decided["workers"]
            self._found.decisions.append(f"{at:.0f} s: {self._wanted}, {decided['reason']}")
        hosts = (await self._http.get("/v1/hosts")).raise_for_status().json()["data"]
        return self._wanted, sum(len(host["places"]) for host in hosts)


class Faults:
    """Takes servers away, and the router once."""

    def __init__(
        self, fleet: asyncio.subprocess.Process, router: Router, found: Found, num_servers: int, scaler: Scaler | None
    ) -> None:
        self._fleet, self._router, self._found, self._num_servers = fleet, router, found, num_servers
        self._scaler = scaler

    async def run(self, seconds: float, num_kills: int, began: float, chance: random.Random) -> None:
        for number in range(num_kills):
            await asyncio.sleep(seconds / (num_kills + 1))
            at = time.monotonic() - began
            if number == num_kills // 2:
                self._found.kills.append((at, "router"))
                await self._router.kill()
                await self._router.start()
            else:
                self._found.kills.append((at, "server"))
                await self.say(f"kill {chance.randrange(self._num_servers)} {_AWAY_S}")

    async def say(self, line: str) -> None:
        assert self._fleet.stdin is not None
        self._fleet.stdin.write(f"{line}\n".encode())
        await self._fleet.stdin.drain()

    async def watch(self, began: float) -> None:
        assert self._fleet.stdout is not None
        while True:
            await self.say("stats")
            running, waiting = json.loads(await self._fleet.stdout.readline())
            at = time.monotonic() - began
            wanted, workers = await self._scaler.look(at) if self._scaler else (1, 1)
            self._found.samples.append(Sample(at, self._found.under_way, running + waiting, wanted, workers))
            await asyncio.sleep(_SAMPLE_S)


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of processes and their children so far."""
    total = 0.0
    for pid in pids:
        try:
            root = psutil.Process(pid)
            times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
        except psutil.NoSuchProcess:
            continue
        total += sum(one.user + one.system for one in times)
        total += times[0].children_user + times[0].children_system  # of those that have ended
    return total


async def measure(
    options: argparse.Namespace, stack: headrace.Stack, keys: list[str], parts: Any
) -> tuple[dict[str, Any], str]:
    fleet, router, layers = parts
    found, chance = Found(), random.Random(1)
    classes = ["interactive", *["standard"] * (len(keys) - 1)] if options.autoscale else ["standard"] * len(keys)
    callers = [Caller(stack.port, key, found, options.tokens, one) for key, one in zip(keys, classes, strict=True)]
    seconds = 60 * options.minutes
    await callers[0].job("warm-up")
    await quiet(callers[0], options.alone_s, found.first_s["alone"], "alone")
    console.log(f"alone: {statistics.median(found.first_s['alone']):.3f} s to the first token")
    before = {name: cpu_s(pids) for name, pids in layers.items()}
    began, num_before = time.monotonic(), found.accepted
    scaler = Scaler(stack, found) if options.autoscale else None
    faults = Faults(fleet, router, found, options.servers, scaler)
    watching = asyncio.create_task(faults.watch(began))
    killing = asyncio.create_task(faults.run(seconds, options.kills, began, chance))
    async with asyncio.timeout(seconds + _END_S):
        await asyncio.gather(
            quiet(callers[0], seconds, found.first_s["beside"], "beside"),
            day(callers[1:], seconds, options.per_s, chance),
        )
    watching.cancel()
    await killing
    jobs = found.accepted - num_before
    spent = {name: round(1000 * (cpu_s(pids) - before[name]) / jobs, 1) for name, pids in layers.items()}
    for caller in callers:
        await caller.close()
    figures = {
        name: {"jobs": len(times), "p50_s": round(statistics.median(times), 3), "p95_s": _p95(times)}
        for name, times in found.first_s.items()
    }
    report = {
        "servers": options.servers,
        "minutes": options.minutes,
        "accepted": found.accepted,
        "refused": dict(found.refused),
        "ended": dict(found.ended),
        "wrong": found.wrong,
        "kills": dict(Counter(what for _, what in found.kills)),
        "most_under_way": max(sample.under_way for sample in found.samples),
        "worker_minutes": round(sum(sample.workers for sample in found.samples) * options.minutes / len(found.samples)),
        "decisions": found.decisions,
        "quiet_first_token": figures,
        "ratio_p50": round(figures["beside"]["p50_s"] / figures["alone"]["p50_s"], 2),
        "ratio_p95": round(figures["beside"]["p95_s"] / figures["alone"]["p95_s"], 2),
        "cpu_ms_per_job": spent,
    }
    return report, svg(found.samples, found.kills)


def _p95(times: list[float]) -> float:
    return round(statistics.quantiles(times, n=20)[-1], 3)


def _keys(database_url: str, count: int) -> list[str]:
    db = Database(database_url, pool_size=1, application_name="bench-fleet")
    try:
        tenants = [create_tenant(db, f"tenant-{number}") for number in range(count)]
        return [create_key(db, tenant, "fleet", ["jobs:read", "jobs:write"], actor="bench") for tenant in tenants]
    finally:
        db.close()


async def _run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    argv = ["-m", "benchmarks.fleet.mock_servers", str(_FIRST_PORT), str(options.servers)]
    pipe = asyncio.subprocess.PIPE
    fleet = await asyncio.create_subprocess_exec(sys.executable, *argv, stdin=pipe, stdout=pipe)
    assert fleet.stdout is not None
    await fleet.stdout.readline()
    addresses = [f"http://127.0.0.1:{_FIRST_PORT + number}" for number in range(options.servers)]
    router = Router(options.router, free_port("127.0.0.1", 0), addresses)
    try:
        await router.start()
        console.log("fleet and router are ready")
        register = [_NAME, "--engine", "openai", "--url", f"http://127.0.0.1:{router.port}", "--continues"]
        register += ["--served-model", mock_servers.MODEL, "--context-window", "8192"]
        changes = {}
        if options.autoscale:
            changes = {"HEADRACE_AUTOSCALE": f"{_NAME}={options.autoscale}", "HEADRACE_MAX_SLOTS": str(options.slots)}
        with (
            running_services() as services,
            headrace.running(
                services,
                console.log,
                changes,
                workers=["headrace.features.hosts", "--autoscale"] if options.autoscale else None,
                register=tuple(register),
            ) as stack,
        ):
            keys = _keys(services.database_url, options.tenants)
            layers = (
                stack.layers | services.layers | {"mock servers": [fleet.pid], "this program": [psutil.Process().pid]}
            )
            return await measure(options, stack, keys, (fleet, router, layers))
    finally:
        fleet.kill()
        await router.kill()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", required=True, help="the program vllm-router")
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--tenants", type=int, default=10, help="the quiet one among them")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the day")
    parser.add_argument("--alone-s", type=float, default=60.0)
    parser.add_argument("--per-s", type=float, default=5.0, help="jobs a second of the others, the day's mean")
    parser.add_argument("--tokens", type=int, default=40, help="of each answer")
    parser.add_argument("--kills", type=int, default=11, help="the router's in their middle, all others of servers")
    parser.add_argument("--autoscale", metavar="LEAST..MOST", help="workers; the quiet tenant's jobs are interactive")
    parser.add_argument("--slots", type=int, default=16, help="requests at once of each worker, with --autoscale")
    parser.add_argument("--drawing", default="fleet.svg")
    options = parser.parse_args()
    report, drawing = asyncio.run(_run(options))
    Path(options.drawing).write_text(drawing)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
