"""Streams beside arriving prompts: ``python -m benchmarks.interference --folder FOLDER``.

``--streams`` requests generate without end while a prompt of ``--prompt-tokens`` comes every ``--every-s`` seconds.
What a reader of a stream notices is the gap between two of its tokens. Each round runs the engine without arrivals,
with them and no bound on a step's time, and with the bound, one after the other, so that a drift of the machine's
speed affects all three. A turn waits for a quiet machine, and where others took part of it all the same it is left out,
if there are better ones. Prints a small table and, as its last line, JSON.
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine.quiet import QUIET_CPUS, wait_until_quiet, watched
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, Delta, EngineRequest, SamplingParams
from headrace.models.engine.runner import Runner
from headrace.models.loading.torch_load import runner_for
from headrace.store.settings import load_settings

console = Console(stderr=True)
VOCAB = 40_000
MAX_TOKENS = 1500  # of a stream, which no round lasts for


class Letters:
    """A detokenizer that shows each token at once."""

    def add(self, token_id: int) -> str:
        return "x"

    def flush(self) -> str:
        return ""


@dataclass
class Watch:
    """When each stream got its tokens."""

    at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, deltas: Sequence[Delta]) -> None:
        now = time.perf_counter()
        for delta in deltas:
            self.at[delta.request_id].append(now)

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between two tokens of a stream, of those within the time given."""
        streams = [[at for at in ats if begin <= at <= end] for name, ats in self.at.items() if name.startswith("s")]
        return [b - a for ats in streams for a, b in pairwise(ats)]


@dataclass(frozen=True)
class Round:
    """One measurement."""

    gaps: list[float]
    first_token_s: list[float]
    tokens_per_s: float  # prompt and output tokens that were computed, of streams and arrivals together
    others_cpus: float = 0.0  # what other processes took meanwhile

    @property
    def median_s(self) -> float:
        return statistics.median(self.gaps)

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.gaps, n=100)[-1]


def request(name: str, num_prompt: int, max_tokens: int) -> EngineRequest:
    """A prompt of its own, and no end of sequence."""
    draw = random.Random(name)
    prompt = tuple(draw.randrange(100, VOCAB) for _ in range(num_prompt))
    return EngineRequest(name, prompt, SamplingParams(max_tokens, ignore_eos=True), cache_salt=name)


def measure(runner: Runner, options: argparse.Namespace, *, stretch: float, arrivals: bool) -> Round:
    """Let streams run, then prompts arrive for a while."""
    watch = Watch()
    config = EngineConfig(options.slots, options.step_tokens, speculation=False, stretch=stretch)
    engine = LLMEngine(runner, Letters, config, on_deltas=watch)
    engine.start()
    try:
        for number in range(options.streams):
            engine.submit(request(f"s{number}", 32, MAX_TOKENS))
        _sleep_until(lambda: len(watch.at) == options.streams and min(map(len, watch.at.values())) > 20)
        with watched() as others:
            before, begin = engine.stats(), time.perf_counter()
            done = _arrive(engine, options) if arrivals else []
            time.sleep(max(0.0, begin + options.seconds - time.perf_counter()))
            after, end = engine.stats(), time.perf_counter()
    finally:
        engine.stop(10)
    prompt_tokens = options.prompt_tokens * (after.completed - before.completed)
    tokens = after.output_tokens - before.output_tokens + prompt_tokens
    firsts = [each.first_token_s or 0.0 for each in done]
    return Round(watch.gaps(begin, end), firsts, tokens / (end - begin), others.cpus)


def _arrive(engine: LLMEngine, options: argparse.Namespace) -> list[CompletionOutput]:
    """Submit a prompt every so often, and wait for those that came in time."""
    begin = time.perf_counter()
    futures = []
    for number in range(int(options.seconds / options.every_s)):
        time.sleep(max(0.0, begin + number * options.every_s - time.perf_counter()))
        futures.append(engine.submit(request(f"a{number}", options.prompt_tokens, 4)))
    done, _ = wait(futures, timeout=30)
    return [future.result() for future in done]


def _sleep_until(holds: Any) -> None:
    waiting = threading.Event()
    while not holds():
        waiting.wait(0.01)


MODES: dict[str, dict[str, Any]] = {
    "no arrivals": {"stretch": inf, "arrivals": False},
    "unbounded": {"stretch": inf, "arrivals": True},
    "bounded": {"stretch": 1.8, "arrivals": True},
}


def summary(rounds: Sequence[Round]) -> dict[str, float]:
    """The rounds of one mode taken together, the quiet ones if there are any."""
    chosen = [each for each in rounds if each.others_cpus <= QUIET_CPUS] or rounds
    gaps = [gap for each in chosen for gap in each.gaps]
    firsts = [first for each in chosen for first in each.first_token_s]
    together = Round(gaps, firsts, statistics.median(each.tokens_per_s for each in chosen))
    return {
        "median_ms": round(together.median_s * 1000, 1),
        "p99_ms": round(together.p99_s * 1000, 1),
        "worst_ms": round(max(gaps) * 1000, 1),
        "p99_to_median": round(together.p99_s / together.median_s, 2),
        "tokens_per_s": round(together.tokens_per_s, 1),
        "first_token_s": round(statistics.mean(firsts), 3) if firsts else 0.0,
        "rounds": len(chosen),
        "others_cpus": max(each.others_cpus for each in chosen),
    }


def show(results: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Print the table for people and the JSON for programs."""
    keys = ("median_ms", "p99_ms", "worst_ms", "p99_to_median", "tokens_per_s", "first_token_s", "rounds")
    table = Table(title=f"{options.streams} streams, a prompt of {options.prompt_tokens} every {options.every_s} s")
    for heading in ("mode", *keys):
        table.add_column(heading, justify="right")
    for mode, found in results.items():
        table.add_row(mode, *(str(found[key]) for key in keys))
    console.print(table)
    print(json.dumps({"benchmark": "interference", "threads": torch.get_num_threads(), "results": results}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interference", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a model folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--every-s", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quiet-s", type=float, default=30.0, help="how long a turn waits for a quiet machine")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--step-tokens", type=int, default=512)
    options = parser.parse_args()
    settings = load_settings().model_copy(update={"kv_pool_tokens": 32_768})
    runner = runner_for(options.folder, settings, dtype=options.dtype)
    rounds: dict[str, list[Round]] = {mode: [] for mode in MODES}
    for _ in range(options.rounds):
        for mode, how in MODES.items():
            wait_until_quiet(options.quiet_s, console.print)
            rounds[mode].append(measure(runner, options, **how))
    show({mode: summary(found) for mode, found in rounds.items()}, options)


if __name__ == "__main__":
    main()
