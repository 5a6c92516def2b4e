"""``make bench-batch``: how long an interactive caller waits for the first token, alone and beside a running batch.

A whole local stack on the real model. Turns alternate, so that a drift of the machine's speed affects both: a few
streamed chats on an idle stack, then as many while a batch keeps the engine busy; the batch is cancelled after its
turn. Prints a table and, as its last line, JSON; exits 1 if the ratio of the medians is over ``--most``.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from benchmarks.workload import chat_jobs
from headrace.cli.local.stack import running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True)

URL = "/v1/chat/completions"
LINES = 400
BUSY_LINES = 8
ALONE, BESIDE = "alone", "beside a batch"


@dataclass(frozen=True)
class First:
    """When the first text came, and how much of that the job waited for a worker and then for its first token."""

    seen_ms: float
    queued_ms: float
    engine_ms: float


def first_token(client: OpenAI, model: str, number: int) -> First:
    """Ask for a short answer as a stream."""
    question = f"Question {number}: what is the capital of France, and which river runs through it?"
    began = time.perf_counter()
    took: float | None = None
    job_id = ""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=8, temperature=0, stream=True
    )
    for chunk in stream:
        job_id = chunk.id.replace("chatcmpl-", "job_")
        if took is None and chunk.choices and chunk.choices[0].delta.content:
            took = (time.perf_counter() - began) * 1000
    if took is None:
        raise RuntimeError("a stream ended without a text")
    usage: Any = client.get(f"/jobs/{job_id}", cast_to=object)
    usage = usage["usage"]
    return First(took, usage["queue_ms"], usage["first_token_ms"] - usage["queue_ms"])


@contextmanager
def busy(client: OpenAI, model: str) -> Iterator[None]:
    """Keep a batch running for the block."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": URL,
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": job.text}],
                "max_tokens": job.max_tokens,
                "ignore_eos": True,
            },
        }
        for number, job in enumerate(chat_jobs(LINES))
    ]
    file = client.files.create(file=("lines.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    while _num_completed(client, batch.id) < BUSY_LINES:
        time.sleep(0.2)
    yield
    if client.batches.cancel(batch.id).status != "cancelling":
        raise RuntimeError("the batch ended before its turn did: give it more lines")
    while client.batches.retrieve(batch.id).status == "cancelling":
        time.sleep(0.2)


def _num_completed(client: OpenAI, batch_id: str) -> int:
    found = client.batches.retrieve(batch_id)
    if found.status == "failed":
        raise RuntimeError(f"the batch failed: {found.errors}")
    return 0 if found.request_counts is None else found.request_counts.completed


def measure(client: OpenAI, options: argparse.Namespace) -> dict[str, list[First]]:
    """Alternate turns alone and beside a batch."""
    found: dict[str, list[First]] = {ALONE: [], BESIDE: []}

    def turn(name: str) -> None:
        for _ in range(options.chats):
            number = sum(map(len, found.values()))
            found[name].append(first_token(client, options.model, number))
            time.sleep(options.pause_s)

    first_token(client, options.model, -1)  # loaded at the first request
    for _ in range(options.rounds):
        turn(ALONE)
        with busy(client, options.model):
            turn(BESIDE)
    return found


def summary(found: list[First]) -> dict[str, float]:
    """Median, slowest tenth and worst of what the caller saw, and the medians of its parts, in milliseconds."""
    seen = [each.seen_ms for each in found]
    return {
        "median_ms": round(statistics.median(seen)),
        "p90_ms": round(statistics.quantiles(seen, n=10)[-1]),
        "worst_ms": round(max(seen)),
        "queued_ms": round(statistics.median(each.queued_ms for each in found)),
        "engine_ms": round(statistics.median(each.engine_ms for each in found)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--chats", type=int, default=20, help="in one turn")
    parser.add_argument("--pause-s", type=float, default=0.3, help="between two chats")
    parser.add_argument("--most", type=float, default=1.5, help="times as long beside a batch")
    options = parser.parse_args()
    with running_stack(load_settings(), [options.model], console.log) as stack:
        client = OpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.api_key, max_retries=0)
        found = {name: summary(times) for name, times in measure(client, options).items()}
    ratio = round(found[BESIDE]["median_ms"] / found[ALONE]["median_ms"], 2)
    table = Table(title=f"First token of an interactive stream, {options.rounds * options.chats} each")
    for heading in ("", "median_ms", "p90_ms", "worst_ms", "queued_ms", "engine_ms"):
        table.add_column(heading, justify="right")
    for name, figures in found.items():
        table.add_row(name, *(str(value) for value in figures.values()))
    console.print(table)
    result: dict[str, Any] = {"benchmark": "batch", "results": found, "ratio": ratio, "most": options.most}
    print(json.dumps(result))
    sys.exit(0 if ratio <= options.most else 1)


if __name__ == "__main__":
    main()
