"""Rows a second through HTTP, in jobs of 100 rows: ``python -m benchmarks.tasks.tabular``.

Trains the example's fraud model, serves it on the embedded stack, and lets callers post rows and wait for predictions,
one job after the other. Beside the rate it counts the CPU seconds of each kind of process, which say what bounds it.
Prints a table and, as its last line, JSON.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.path import cpu_name
from examples.fraud_scoring.payments import payments
from examples.fraud_scoring.train import train
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)

ROWS_A_JOB = 100
_KINDS = ("postgres", "valkey", "dispatcher", "flower", "worker", "api")  # Postgres names its clients in its titles


def _bodies(model: str, count: int, *, explain: bool) -> list[bytes]:
    rows = [one.row for one in payments(count * ROWS_A_JOB, seed=2)]
    jobs = [rows[first : first + ROWS_A_JOB] for first in range(0, len(rows), ROWS_A_JOB)]
    return [json.dumps({"model": model, "rows": job, "explain": explain}).encode() for job in jobs]


async def _post_all(stack: Stack, bodies: Sequence[bytes], callers: int) -> tuple[float, list[float]]:
    """Return the seconds of all jobs, and of each."""
    headers = {"Authorization": f"Bearer {stack.api_key}", "Content-Type": "application/json"}
    waiting = list(bodies)
    took = []
    limits = httpx2.Limits(max_connections=callers)
    async with httpx2.AsyncClient(base_url=stack.api_url, headers=headers, limits=limits, timeout=90) as client:

        async def call() -> None:
            while waiting:
                body = waiting.pop()
                began = time.perf_counter()
                answer = await client.post("/v1/tabular/predictions", content=body)
                answer.raise_for_status()
                took.append(time.perf_counter() - began)
                if len(answer.json()["predictions"]) != ROWS_A_JOB:
                    raise SystemExit("a job has too few predictions")

        start = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        return time.perf_counter() - start, took


def _cpu_seconds() -> Counter[str]:
    """Return the CPU seconds so far of each kind of process below this one, and of this one as ``callers``."""
    found: Counter[str] = Counter()
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            words = " ".join(process.cmdline())
            times = process.cpu_times()
        except psutil.Error:
            continue
        kind = "callers" if process == own else next((one for one in _KINDS if one in words), "other")
        found[kind] += times.user + times.system
    return found


def _measure(stack: Stack, args: argparse.Namespace) -> dict[str, Any]:
    asyncio.run(_post_all(stack, _bodies("fraud", 20, explain=args.explain), args.callers))  # warm
    rates, spent, latencies = [], Counter[str](), []
    num_rows = args.jobs * ROWS_A_JOB
    for _ in range(args.rounds):
        before = _cpu_seconds()
        seconds, took = asyncio.run(_post_all(stack, _bodies("fraud", args.jobs, explain=args.explain), args.callers))
        spent += _cpu_seconds() - before
        rates.append(num_rows / seconds)
        latencies += took
        console.log(f"{rates[-1]:.0f} rows/s")
    latencies.sort()
    return {
        "benchmark": "tabular",
        "rows_a_job": ROWS_A_JOB,
        "jobs": args.jobs,
        "callers": args.callers,
        "explain": args.explain,
        "cpus": os.cpu_count(),
        "machine": cpu_name(),
        "load_average": round(os.getloadavg()[0], 1),
        "rows_per_s": [round(rate) for rate in rates],
        "job_ms_p50": round(latencies[len(latencies) // 2] * 1e3),
        "job_ms_p99": round(latencies[int(len(latencies) * 0.99)] * 1e3),
        "cpu_us_a_row": {
            kind: round(seconds / args.rounds / num_rows * 1e6, 1) for kind, seconds in spent.most_common()
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400, help="jobs of a round")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--explain", action="store_true", help="with the contribution of each feature")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "fraud"
        train(folder, payments(5000, seed=1), epochs=2, seed=1)
        settings = load_settings().model_copy(update={"home": Path(scratch) / "home"})
        with running_stack(settings, [str(folder)], console.log) as stack:
            found = _measure(stack, args)
    table = Table(title=f"{ROWS_A_JOB} rows a job, {args.callers} callers, {found['cpus']} CPUs")
    table.add_column("")
    table.add_column("CPU microseconds a row", justify="right")
    for kind, spent in found["cpu_us_a_row"].items():
        table.add_row(kind, str(spent))
    console.print(table)
    console.print(f"rows/s: {found['rows_per_s']}; a job takes {found['job_ms_p50']} ms (p50)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
