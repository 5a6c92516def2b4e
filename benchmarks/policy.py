"""``python -m benchmarks.policy``: what a policy for outputs costs a stream, on the whole path of the embedded stack.

In each round, for each policy in turn, so many readers ask for a stream at once. TTFT is from the request to the first
text; gaps are between pieces of one stream. The policies hold back from nothing to everything that is recognised.
Prints a table and, as its last line, JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from benchmarks.workload import chat_jobs
from headrace.cli.local.stack import Stack, running_stack
from headrace.policy.recognisers.recogniser import STRUCTURED
from headrace.store.settings import load_settings

console = Console(stderr=True)
FOLLOWED_AFTER_S = 6.0
"""Every process follows a change within five seconds."""

_DENY = {"phrases": ["Project Titan", "the old wheel of iron"]}
POLICIES: Mapping[str, list[dict[str, Any]]] = {
    "none": [],
    "a deny list": [{"id": "d", "deny": _DENY, "action": "redact", "stage": "output"}],
    "email, card, iban": [{"id": "k", "kinds": ["email", "card", "iban"], "action": "redact", "stage": "output"}],
    "every kind": [{"id": "all", "kinds": list(STRUCTURED), "action": "redact", "stage": "output"}],
    "one that only flags": [{"id": "f", "kinds": list(STRUCTURED), "action": "flag", "stage": "output"}],
}


@dataclass
class Seen:
    """What readers saw under one policy."""

    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def row(self) -> dict[str, float]:
        """The figures: tokens a second, and milliseconds."""
        cuts = statistics.quantiles(self.gaps_s, n=20)
        return {
            "tokens_per_s": round(self.tokens / self.seconds, 1),
            "ttft_p50_ms": round(statistics.median(self.first_s) * 1000, 1),
            "gap_p50_ms": round(statistics.median(self.gaps_s) * 1000, 1),
            "gap_p95_ms": round(cuts[-1] * 1000, 1),
        }


async def _read(client: httpx2.AsyncClient, model: str, prompt: str, max_tokens: int, seen: Seen) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    last = began = time.perf_counter()
    is_first = True
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk["usage"]:
                seen.tokens += chunk["usage"]["completion_tokens"]
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                now = time.perf_counter()
                (seen.first_s if is_first else seen.gaps_s).append(now - (began if is_first else last))
                last, is_first = now, False


async def _round(stack: Stack, model: str, name: str, args: argparse.Namespace, seen: Seen) -> None:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    limits = httpx2.Limits(max_connections=args.readers)
    async with httpx2.AsyncClient(base_url=stack.api_url, headers=headers, limits=limits, timeout=120) as client:
        put = await client.put("/v1/policies", json={"document": {"rules": POLICIES[name]}})
        put.raise_for_status()
        await asyncio.sleep(FOLLOWED_AFTER_S)
        await _read(client, model, "Hello.", 64, Seen())  # warm
        prompts = [job.text[:200] for job in chat_jobs(args.readers)]
        start = time.perf_counter()
        await asyncio.gather(*(_read(client, model, prompt, args.tokens, seen) for prompt in prompts))
        seen.seconds += time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--readers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    found = {name: Seen() for name in POLICIES}
    with running_stack(load_settings(), [args.model], console.log) as stack:
        for number in range(args.rounds):
            for name, seen in found.items():
                console.log(f"round {number + 1} of {args.rounds}: {name}")
                asyncio.run(_round(stack, args.model, name, args, seen))
    rows = {name: seen.row() for name, seen in found.items()}
    table = Table("policy", "tokens/s", "TTFT p50, ms", "gap p50, ms", "gap p95, ms", title=f"{args.readers} readers")
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    console.print(table)
    print(json.dumps({"benchmark": "policy", "model": args.model, "cpus": os.cpu_count(), **rows}))


if __name__ == "__main__":
    main()
