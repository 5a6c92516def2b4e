"""``make bench-tenants``: how long one tenant waits, alone and beside another that sends ten times what can be served.

A whole local stack on the fake model with steps of a fixed time, so that the capacity is the worker's and not the
machine's. First the capacity is measured: a burst of jobs and the time in which it is served. Then the quiet tenant
submits a job every ``--every-s`` and follows its stream, alone; then the same while the other tenant submits ten times
the capacity, without waiting for anything. Prints a table and, as its last line, JSON; exits 1 if the ratio of the 95th
percentiles, of the first token or of the end, is over ``--most``.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from headrace.cli.local.home import Home
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.db.database import Database
from headrace.store.settings import load_settings
from headrace.store.tenants.api_keys import create_key, create_tenant

console = Console(stderr=True)

MODEL = "fake"
BURST = 150
LEAD_S = 5.0
ALONE, BESIDE = "alone", "beside the flood"


@dataclass(frozen=True)
class Options:
    """The settings of a run. ``slots`` jobs of ``tokens`` tokens run at once, and each token takes ``step_ms``."""

    samples: int = 90
    every_s: float = 0.7
    slots: int = 8
    tokens: int = 16
    step_ms: float = 40.0
    times: float = 10.0
    most: float = 1.5


@dataclass(frozen=True)
class Sample:
    """Seconds from the submit to the first token and to the end of the stream."""

    first_s: float
    end_s: float


def _body(options: Options, number: int) -> dict[str, Any]:
    sampling = {"max_tokens": options.tokens, "temperature": 0, "ignore_eos": True}
    return {"model": MODEL, "input": {"prompt": f"Tell me of mill {number}."}, "sampling": sampling}


def _client(stack: Stack, key: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=stack.api_url, headers=headers, limits=limits, timeout=120, trust_env=False)


async def _follow(client: httpx2.AsyncClient, options: Options, number: int) -> Sample:
    """Submit a job and read its stream to the end."""
    began, first = time.perf_counter(), None
    submitted = await client.post("/v1/jobs", json=_body(options, number))
    submitted.raise_for_status()
    async with client.stream("GET", f"/v1/jobs/{submitted.json()['id']}/events") as events:
        async for line in events.aiter_lines():
            if line.startswith("event: job.delta") and first is None:
                first = time.perf_counter() - began
            if line.startswith("event: job.succeeded"):
                break
        else:
            raise RuntimeError("a stream ended without its end")
    if first is None:
        raise RuntimeError("a stream had no text")
    return Sample(first, time.perf_counter() - began)


async def _quiet(client: httpx2.AsyncClient, options: Options) -> list[Sample]:
    """Submit at a fixed pace, whether what came before has ended or not."""
    tasks, began = [], time.perf_counter()
    for number in range(options.samples):
        await asyncio.sleep(max(0.0, began + number * options.every_s - time.perf_counter()))
        tasks.append(asyncio.create_task(_follow(client, options, number)))
    return await asyncio.gather(*tasks)


async def _capacity(client: httpx2.AsyncClient, options: Options) -> float:
    """Return how many jobs are served in a second when more than enough wait."""
    began = time.perf_counter()
    await asyncio.gather(*(_follow(client, options, number) for number in range(BURST)))
    return BURST / (time.perf_counter() - began)


@asynccontextmanager
async def _flood(client: httpx2.AsyncClient, options: Options, per_s: float) -> AsyncIterator[Counter[int]]:
    """Submit ``per_s`` jobs a second for the block; count the answers by their status."""
    statuses: Counter[int] = Counter()
    body = json.dumps(_body(options, 0)).encode()
    tasks: set[asyncio.Task[None]] = set()

    async def submit(number: int) -> None:
        # Prepared, because what this program takes of the processors the stack has not.
        content = body.replace(b"mill 0", b"mill %d" % number)
        answer = await client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
        statuses[answer.status_code] += 1

    async def send() -> None:
        began, number = time.perf_counter(), 0
        while True:
            await asyncio.sleep(max(0.0, began + number / per_s - time.perf_counter()))
            task = asyncio.create_task(submit(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1

    sender = asyncio.create_task(send())
    try:
        yield statuses
    finally:
        sender.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(stack: Stack, keys: tuple[str, str], options: Options) -> dict[str, Any]:
    """Measure the capacity, then the quiet tenant alone and beside the flood."""
    async with _client(stack, keys[0]) as quiet, _client(stack, keys[1]) as other:
        await asyncio.gather(*(_follow(other, options, number) for number in range(4)))  # loaded at first
        capacity = await _capacity(other, options)
        console.log(f"capacity: {capacity:.1f} jobs/s")
        alone = await _quiet(quiet, options)
        console.log(ALONE)
        began = time.perf_counter()
        async with _flood(other, options, options.times * capacity) as statuses:
            await asyncio.sleep(LEAD_S)
            beside = await _quiet(quiet, options)
            sent_per_s = statuses.total() / (time.perf_counter() - began)
        console.log(BESIDE)
    return {
        "capacity_per_s": round(capacity, 1),
        "flood_per_s": round(sent_per_s, 1),
        "flood_statuses": dict(statuses),
        "results": {ALONE: summary(alone), BESIDE: summary(beside)},
    }


def summary(samples: list[Sample]) -> dict[str, float]:
    """Return medians and 95th percentiles, in milliseconds."""
    found = {}
    for name in ("first", "end"):
        times = [1000 * getattr(sample, f"{name}_s") for sample in samples]
        found[f"{name}_p50_ms"] = round(statistics.median(times), 1)
        found[f"{name}_p95_ms"] = round(statistics.quantiles(times, n=20)[-1], 1)
    return found


def _tenants(home: Path) -> tuple[str, str]:
    """Make a key for each of two tenants."""
    record = Home(home).record()
    if record is None:
        raise SystemExit("the stack left no record of its services")
    db = Database(record.database_url, pool_size=1, application_name="bench-tenants")
    try:
        made = [
            create_key(db, create_tenant(db, name), name, ["jobs:read", "jobs:write"], actor="bench")
            for name in ("quiet", "flood")
        ]
    finally:
        db.close()
    return made[0], made[1]


def _table(found: dict[str, Any], options: Options) -> Table:
    table = Table(
        title=f"A quiet tenant, {options.samples} jobs; the other sends {found['flood_per_s']} jobs/s,"
        f" {found['capacity_per_s']} can be served"
    )
    for heading in ("", *found["results"][ALONE]):
        table.add_column(heading, justify="right")
    for name, figures in found["results"].items():
        table.add_row(name, *(str(value) for value in figures.values()))
    return table


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__)
    for name, default in asdict(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = Options(**vars(parser.parse_args()))
    changes = {
        "HEADRACE_FAKE_STEP_MS": str(options.step_ms),
        "HEADRACE_MAX_SLOTS": str(options.slots),
        # Its rate is not measured here: the accepted jobs have to be shared.
        "HEADRACE_REQUESTS_PER_MINUTE": "10000000",
        "HEADRACE_TOKENS_PER_MINUTE": "1000000000",
    }
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        settings = load_settings().model_copy(update={"home": Path(folder), "api_port": 0, "flower_port": 0})
        with running_stack(settings, [MODEL], console.log, changes) as stack:
            found = asyncio.run(measure(stack, _tenants(settings.home), options))
    alone, beside = found["results"][ALONE], found["results"][BESIDE]
    ratios = {name: round(beside[name] / alone[name], 2) for name in ("first_p95_ms", "end_p95_ms")}
    console.print(_table(found, options))
    console.print(f"beside the flood the 95th percentiles are {ratios} times those alone")
    print(json.dumps({"benchmark": "tenants", "cpus": os.cpu_count(), **asdict(options), **found, "ratios": ratios}))
    return 0 if max(ratios.values()) <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
