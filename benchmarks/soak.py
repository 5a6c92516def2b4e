"""An engine under mixed load for as long as you like: ``python -m benchmarks.soak --folder FOLDER --minutes 60``.

Requests of four tenants, prompts that begin alike and prompts that do not, short and long, greedy and sampled, of every
class; a third of them is cancelled at some moment, some are late, and now and then all are let go at once. While it
runs, the memory of the process is noted; at the end each request must have had its outcome, and each KV block must be
free. Prints memory over time as a line, and as its last line JSON; exits 1 if anything does not hold.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.interference import VOCAB, Letters
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, SamplingParams
from headrace.models.fakes.fake import FakeRunner
from headrace.models.loading.torch_load import runner_for
from headrace.store.settings import load_settings

console = Console(stderr=True)
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 80


@dataclass
class Load:
    """Submits and cancels at random, by a seed."""

    engine: LLMEngine
    draw: random.Random
    most_inside: int
    inside: dict[str, Future[CompletionOutput]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    num_submitted: int = 0

    def turn(self) -> None:
        """One thing happens, and outcomes are counted."""
        roll = self.draw.random()
        if roll < 0.001:
            for name in self.inside:
                self.engine.cancel(name)
        elif roll < 0.3 and self.inside:
            self.engine.cancel(self.draw.choice([*self.inside]))
        elif len(self.inside) < self.most_inside:
            self._submit()
        for name in [name for name, future in self.inside.items() if future.done()]:
            self._count(self.inside.pop(name))

    def finish(self) -> None:
        """Wait for all requests."""
        wait(self.inside.values(), timeout=300)
        for future in self.inside.values():
            self._count(future)

    def _submit(self) -> None:
        request = self._request()
        self.inside[request.id] = self.engine.submit(request)
        self.num_submitted += 1

    def _request(self) -> EngineRequest:
        draw = self.draw
        beginning = draw.choice([0, 0, 40, 200])
        rest = round(2 ** draw.uniform(0, 8))
        sampling = SamplingParams(
            max_tokens=round(2 ** draw.uniform(0, 8)),
            temperature=draw.choice([0.0, 0.9]),
            seed=draw.randrange(100),
            frequency_penalty=draw.choice([0.0, 0.0, 0.5]),
        )
        return EngineRequest(
            f"r{self.num_submitted}",
            (*range(100, 100 + beginning), *(draw.randrange(100, VOCAB) for _ in range(rest))),
            sampling,
            deadline=time.monotonic() + draw.uniform(0, 5) if draw.random() < 0.05 else None,
            cache_salt=f"tenant {draw.randrange(4)}",
            class_rank=draw.randrange(3),
        )

    def _count(self, future: Future[CompletionOutput]) -> None:
        if not future.done():
            self.outcomes["none"] += 1
        elif error := future.exception():
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes[future.result().finish_reason] += 1


def soak(engine: LLMEngine, options: argparse.Namespace) -> tuple[Load, list[float]]:
    """Run the load, and return it with the process's memory in MiB, evenly spaced in time."""
    load = Load(engine, random.Random(options.seed), options.inside)
    process = psutil.Process()
    begin, seconds = time.monotonic(), options.minutes * 60
    every_s = max(1.0, seconds / 1000)
    sizes: list[float] = []
    while (now := time.monotonic() - begin) < seconds:
        load.turn()
        if now >= len(sizes) * every_s:
            sizes.append(process.memory_info().rss / 2**20)
        time.sleep(options.pause_s)
    load.finish()
    return load, sizes


def drawn(values: Sequence[float]) -> str:
    """The values as a line of bars, at most ``WIDTH`` wide, from the least to the greatest."""
    size = -(-len(values) // WIDTH)
    means = [statistics.fmean(values[n : n + size]) for n in range(0, len(values), size)]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / max(high - low, 1e-9) * (len(BARS) - 1))] for mean in means)


def growth(values: Sequence[float]) -> float:
    """MiB by which the last quarter lies over the second one; the first is the time to get warm."""
    quarter = max(1, len(values) // 4)
    return statistics.fmean(values[-quarter:]) - statistics.fmean(values[quarter : 2 * quarter] or values)


def broken(engine: LLMEngine, load: Load) -> list[str]:
    """What does not hold at the end."""
    stats = engine.stats()
    try:
        engine.audit()
        books = ""
    except AssertionError as error:
        books = str(error)
    rules = {
        "every request had its outcome": load.outcomes["none"] == 0 and load.outcomes.total() == load.num_submitted,
        "nobody is inside": stats.running + stats.waiting == 0,
        "every block is free": stats.free_blocks == stats.total_blocks,
        f"the books are right {books}".strip(): not books,
        "nothing failed": stats.failed == 0,
    }
    return [rule for rule, holds in rules.items() if not holds]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--folder", type=Path, help="a model folder; without one the fake runs")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pool-tokens", type=int, default=4096, help="small, so that requests are preempted")
    parser.add_argument("--inside", type=int, default=48)
    parser.add_argument("--pause-s", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = load_settings().model_copy(update={"kv_pool_tokens": options.pool_tokens})
    fake = FakeRunner(num_blocks=options.pool_tokens // settings.kv_block_tokens, step_s=0.002)
    runner = runner_for(options.folder, settings, dtype=options.dtype) if options.folder else fake
    engine = LLMEngine(runner, Letters, EngineConfig(max_slots=settings.max_slots), on_deltas=lambda deltas: None)
    engine.start()
    load, sizes = soak(engine, options)
    faults, stats = broken(engine, load), engine.stats()
    engine.stop(10)
    console.print(f"memory {min(sizes):.0f} to {max(sizes):.0f} MiB: {drawn(sizes)}")
    report = {
        "benchmark": "soak",
        "minutes": options.minutes,
        "submitted": load.num_submitted,
        "outcomes": dict(load.outcomes),
        "steps": stats.steps,
        "output_tokens": stats.output_tokens,
        "preempted": stats.preempted,
        "cached_tokens": stats.cached_tokens,
        "evicted_blocks": stats.evicted_blocks,
        "rss_mib": [round(sizes[0], 1), round(sizes[-1], 1)],
        "rss_growth_mib": round(growth(sizes), 1),
        "broken": faults,
    }
    print(json.dumps(report))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
