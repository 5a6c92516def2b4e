"""``make bench``: the whole path, HTTP to stored result, beside the bare engine and transformers one by one.

One run on the embedded stack: in each round the bare engine and then the whole path compute the same chat jobs, so
that a drift of the machine's speed affects both; transformers' ``generate`` computes the first of them once. Prints a
table and, as its last line, JSON. Seconds are from the first request to the last stored result.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from benchmarks.peers import measure
from benchmarks.workload import ChatJob, chat_jobs
from headrace.cli.local.home import Home, StackRecord
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)
MODEL = "smollm2"


async def _one(client: httpx2.AsyncClient, job: ChatJob) -> dict[str, Any]:
    body = {"model": MODEL, **job.payload.model_dump(mode="json", exclude_none=True)}
    response = await client.post("/v1/jobs", json=body)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    while found["status"] in {"queued", "running"}:
        response = await client.get(f"/v1/jobs/{found['id']}", params={"wait": 60})
        response.raise_for_status()
        found = response.json()
    return found


async def _path(stack: Stack, jobs: list[ChatJob]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    limits = httpx2.Limits(max_connections=len(jobs))
    async with httpx2.AsyncClient(base_url=stack.api_url, headers=headers, limits=limits, timeout=90) as client:
        start = time.perf_counter()
        done = await asyncio.gather(*(_one(client, job) for job in jobs))
        seconds = time.perf_counter() - start
    failed = [job["id"] for job in done if job["status"] != "succeeded"]
    if failed:
        raise SystemExit(f"{len(failed)} jobs did not succeed: {failed[:3]}")
    tokens = sum(job["usage"]["output_tokens"] for job in done)
    return {"seconds": seconds, "tokens": tokens, "texts": [job["output"]["text"] for job in done]}


def _rate(result: dict[str, Any]) -> float:
    return float(result["tokens"] / result["seconds"])


def _equal(ours: list[str], reference: list[str]) -> int:
    return sum(a == b for a, b in zip(ours, reference, strict=False))


def _measure(stack: Stack, record: StackRecord, args: argparse.Namespace) -> dict[str, Any]:
    jobs = chat_jobs(args.requests)
    asyncio.run(_path(stack, [ChatJob("Hello.", 8)] * 4))  # warm
    engine, path = [], []
    for n in range(args.rounds):
        console.log(f"round {n + 1} of {args.rounds}: bare engine")
        engine.append(measure("engine", record, MODEL, jobs))
        console.log(f"round {n + 1} of {args.rounds}: whole path")
        path.append(asyncio.run(_path(stack, jobs)))
    console.log(f"transformers generate, one by one, first {args.one_by_one}")
    generate = measure("generate", record, MODEL, jobs[: args.one_by_one])
    ratios = [_rate(ours) / _rate(bare) for ours, bare in zip(path, engine, strict=True)]
    return {
        "benchmark": "path",
        "requests": args.requests,
        "rounds": args.rounds,
        "cpus": os.cpu_count(),
        "machine": cpu_name(),
        "path_tokens_per_s": round(statistics.median(map(_rate, path)), 1),
        "engine_tokens_per_s": round(statistics.median(map(_rate, engine)), 1),
        "generate_tokens_per_s": round(_rate(generate), 1),
        "path_to_engine": round(statistics.median(ratios), 3),
        "path_to_engine_all": [round(ratio, 3) for ratio in ratios],
        "path_to_generate": round(statistics.median(map(_rate, path)) / _rate(generate), 2),
        "engine_mean_batch": round(engine[-1]["mean_batch"], 1),
        "equal_to_generate": f"{_equal(path[-1]['texts'], generate['texts'])} of {args.one_by_one}",
    }


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['requests']} chat jobs, {found['cpus']} CPUs, median of {found['rounds']} rounds")
    for heading in ("", "output tokens/s", "whole path is"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("whole path (HTTP to stored result)", str(found["path_tokens_per_s"]), "")
    table.add_row("bare engine", str(found["engine_tokens_per_s"]), f"{found['path_to_engine']:.2f} ×")
    table.add_row(
        "transformers generate, one by one", str(found["generate_tokens_per_s"]), f"{found['path_to_generate']:.2f} ×"
    )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one-by-one", type=int, default=12, help="how many jobs transformers computes")
    args = parser.parse_args()
    settings = load_settings()
    with running_stack(settings, [MODEL], console.log, {"HEADRACE_DTYPE": "float32"}) as stack:
        record = Home(settings.home).record()
        if record is None:
            raise SystemExit("the stack left no record of its services")
        found = _measure(stack, record, args)
    console.print(_table(found))
    console.print(f"answers equal to transformers' greedy fp32: {found['equal_to_generate']}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
