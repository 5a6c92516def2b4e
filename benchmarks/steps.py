"""What slots, budget, prompt length and context do to speed: ``python -m benchmarks.steps --folder FOLDER``.

One engine in this process, four sweeps, each changing one thing, and beside them the machine's roofline: how fast the
weights could be read at best, and how many multiplications are done a second at best, both measured in the same run.
Each point is measured once a round, the sweeps in turn, so that a drift of the machine's speed affects all; medians.
Prints tables and, as its last line, one JSON object.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine.quiet import wait_until_quiet
from benchmarks.engine.workloads import SHAPES, requests_of
from benchmarks.interference import Letters, Watch, request
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Runner
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import load_settings

console = Console(stderr=True)
POOL_TOKENS = 40_960
STEP_TOKENS = 512
DECODED = 48  # tokens of each answer where decoding is measured
_STOP_S = 10.0


@dataclass(frozen=True)
class Run:
    """What one set of requests took."""

    seconds: float
    output_tokens: int
    prompt_tokens: int
    first_s: float  # mean, from the submit
    gap_p50_s: float  # between two tokens of one answer
    gap_p99_s: float
    step_s: float  # median gap while all stream and no prompt is computed

    @property
    def output_per_s(self) -> float:
        return self.output_tokens / self.seconds


def run(runner: Runner, requests: Sequence[EngineRequest], config: EngineConfig) -> Run:
    """Let the requests come at once, and wait for all."""
    watch = Watch()
    engine = LLMEngine(runner, Letters, config, on_deltas=watch)
    engine.start()
    try:
        began = time.perf_counter()
        futures = [engine.submit(each) for each in requests]
        done = [future.result() for future in futures]
        seconds = time.perf_counter() - began
    finally:
        engine.stop(_STOP_S)
    gaps = sorted(watch.gaps(began, began + seconds)) or [0.0]
    all_stream_at = max(times[0] for times in watch.at.values())
    return Run(
        seconds,
        sum(len(each.token_ids) for each in done),
        sum(len(each.prompt) for each in requests),
        statistics.mean(each.first_token_s or 0.0 for each in done),
        statistics.median(gaps),
        gaps[int(len(gaps) * 0.99)],
        statistics.median(watch.gaps(all_stream_at, began + seconds) or [0.0]),
    )


class Sweeps:
    """The sweeps over one runner; no prompt is used twice, so that none is found in the cache."""

    def __init__(self, runner: Runner, mixed: Callable[[int], Sequence[EngineRequest]]) -> None:
        self._runner = runner
        self._mixed = mixed
        self._number = 0

    def slots(self, slots: int) -> Run:
        """As many short prompts as slots, all decoding together."""
        return run(self._runner, self._alike(slots, 32, DECODED), _config(slots))

    def context(self, tokens: int) -> Run:
        """Eight answers that go on after prompts of so many tokens, long enough for all to stream at last."""
        steps = DECODED + 8 * tokens // STEP_TOKENS
        return run(self._runner, self._alike(8, tokens, steps), _config(8))

    def prompt(self, tokens: int) -> Run:
        """One prompt alone."""
        return run(self._runner, self._alike(1, tokens, 1), _config(1))

    def budget(self, tokens: int) -> Run:
        """The mixed workload with so many tokens a step at most, and no other bound on a step."""
        self._number += 1
        return run(self._runner, self._mixed(self._number), _config(64, tokens))

    def _alike(self, count: int, num_prompt: int, max_tokens: int) -> list[EngineRequest]:
        self._number += 1
        # The names begin with "s", as those of streams do.
        return [request(f"s{self._number}.{n}", num_prompt, max_tokens) for n in range(count)]


def _config(slots: int, step_tokens: int = STEP_TOKENS) -> EngineConfig:
    return EngineConfig(slots, step_tokens, speculation=False, stretch=inf)


POINTS = {
    "slots": (1, 2, 4, 8, 16, 32, 64),
    "budget": (64, 128, 256, 512, 1024),
    "prompt": (16, 64, 256, 1024, 4096),
    "context": (64, 256, 1024, 4096),
}


def read_gb_per_s() -> float:
    """Bytes a second that all threads read from memory, the best of some passes over 512 MB."""
    data = torch.ones(128 * 2**20, dtype=torch.float32)
    return max(_rate(data.nbytes, lambda: data.sum()) for _ in range(8)) / 1e9


def bf16_gflop_per_s() -> float:
    """Multiplications and additions a second of the best large product of torch's in bfloat16."""
    size = 2048
    a, b = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    return max(_rate(2 * size**3, lambda: a @ b) for _ in range(8)) / 1e9


def _rate(amount: float, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return amount / (time.perf_counter() - began)


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    median = statistics.median
    return {
        "output_per_s": round(median(each.output_per_s for each in runs), 1),
        "prompt_per_s": round(median(each.prompt_tokens / each.first_s for each in runs), 1),
        "first_ms": round(1000 * median(each.first_s for each in runs), 1),
        "step_ms": round(1000 * median(each.step_s for each in runs), 1),
        "gap_p50_ms": round(1000 * median(each.gap_p50_s for each in runs), 1),
        "gap_p99_ms": round(1000 * median(each.gap_p99_s for each in runs), 1),
    }


_SHOWN = {
    "slots": ("output_per_s", "step_ms"),
    "budget": ("output_per_s", "first_ms", "gap_p50_ms", "gap_p99_ms"),
    "prompt": ("prompt_per_s", "first_ms"),
    "context": ("step_ms",),
}


def show(found: dict[str, dict[int, dict[str, float]]]) -> None:
    """Print one table a sweep."""
    for name, points in found.items():
        table = Table(title=name)
        for heading in ("tokens" if name != "slots" else "slots", *_SHOWN[name]):
            table.add_column(heading, justify="right")
        for point, figures in points.items():
            table.add_row(str(point), *(str(figures[key]) for key in _SHOWN[name]))
        console.print(table)


def _mixed_of(folder: Path, seed: int) -> Callable[[int], Sequence[EngineRequest]]:
    tokenizer = load_tokenizer(small_files(folder))

    def mixed(number: int) -> Sequence[EngineRequest]:
        asked = requests_of(SHAPES["mixed"], lambda text: tokenizer.encode(text, add_special=False), seed, number)
        return [
            EngineRequest(f"s{number}.{each.id}", each.prompt, SamplingParams(each.max_tokens, ignore_eos=True))
            for each in asked
        ]

    return mixed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a model folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweeps", nargs="+", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quiet-s", type=float, default=30.0, help="how long a point waits for a quiet machine")
    options = parser.parse_args()
    settings = load_settings().model_copy(update={"kv_pool_tokens": POOL_TOKENS})
    runner = runner_for(options.folder, settings, dtype=options.dtype)
    sweeps = Sweeps(runner, _mixed_of(options.folder, options.seed))
    sweeps.slots(8)  # warm
    runs: dict[str, dict[int, list[Run]]] = {name: defaultdict(list) for name in options.sweeps}
    roof: list[tuple[float, float]] = []
    for number in range(options.rounds):
        console.log(f"round {number + 1} of {options.rounds}")
        roof.append((read_gb_per_s(), bf16_gflop_per_s()))
        for name in options.sweeps:
            for point in POINTS[name]:
                wait_until_quiet(options.quiet_s, console.print)
                runs[name][point].append(getattr(sweeps, name)(point))
    found = {name: {point: _medians(each) for point, each in points.items()} for name, points in runs.items()}
    show(found)
    gb, gflop = (max(each) for each in zip(*roof, strict=True))
    console.print(f"{torch.get_num_threads()} threads read {gb:.1f} GB/s; bfloat16 products {gflop:.0f} GFLOP/s")
    print(json.dumps({"benchmark": "steps", "sweeps": found, "read_gb_per_s": gb, "bf16_gflop_per_s": gflop}))


if __name__ == "__main__":
    main()
