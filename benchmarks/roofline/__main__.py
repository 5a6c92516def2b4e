"""``make bench-roofline``: a Llama of 1.1 billion random weights beside what this machine can do at best.

Measures, in turn: the bytes that all threads read from memory a second, the bfloat16 operations that they do a second
(``peak.cpp``), and steps of the engine. No step can be faster than its bytes and its operations at these rates; the
share is that time divided by the measured one. Medians of the rounds. Prints a table, writes ``build/roofline.svg``,
and prints one JSON object as its last line.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.engine.quiet import wait_until_quiet
from benchmarks.interference import request
from benchmarks.roofline.drawing import svg
from benchmarks.steps import DECODED, STEP_TOKENS, run
from headrace.models.engine.llm_engine import EngineConfig
from headrace.models.engine.runner import Runner
from headrace.models.loading.torch_load import runner_for
from headrace.models.native.build import FLAGS, SOURCES
from headrace.store.settings import load_settings

console = Console(stderr=True)
POOL_TOKENS = 8192
READ_BYTES = 256 << 20
PROMPT = 1024
DECODES = (1, 4, 16, 64)
SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 49_152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Work:
    """What a point needs at least: bytes read from memory, and multiplications and additions."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Peak:
    """The rates of the machine: bytes a second from memory, bfloat16 operations a second."""

    bytes_per_s: float
    operations_per_s: float

    def least_s(self, work: Work) -> float:
        """Return the least time that the work can take."""
        return max(work.bytes / self.bytes_per_s, work.operations / self.operations_per_s)


class Model:
    """The counts of the model: what a step reads and computes."""

    def __init__(self, config: LlamaConfig) -> None:
        hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        self._kv = 2 * hidden // config.num_attention_heads * config.num_key_value_heads
        self._layers = layers * (2 * hidden * hidden + hidden * self._kv + 3 * hidden * inner)
        self._head = hidden * config.vocab_size
        self._attention = 4 * layers * hidden  # operations for each token and each token that it sees
        self._cached = 2 * layers * self._kv  # bytes of a token in the cache

    def decode(self, rows: int, context: int) -> Work:
        """One token for each row."""
        weights = self._layers + self._head
        return Work(2 * weights + rows * context * self._cached, rows * (2 * weights + context * self._attention))

    def prefill(self, tokens: int) -> Work:
        """One prompt, with the weights read once for each step."""
        steps = -(-tokens // STEP_TOKENS)
        return Work(
            steps * 2 * self._layers + 2 * self._head,
            tokens * (2 * self._layers + tokens / 2 * self._attention) + 2 * self._head,
        )


def peak_library(folder: Path) -> ctypes.CDLL:
    """Compile ``peak.cpp`` with the flags of the kernels."""
    path = folder / "peak.so"
    source = Path(__file__).parent / "peak.cpp"
    subprocess.run(["g++", *FLAGS, f"-I{SOURCES}", "-o", str(path), str(source)], check=True)
    library = ctypes.CDLL(str(path))
    library.read_rate.restype = library.multiply_rate.restype = ctypes.c_double
    return library


def measure(runner: Runner, number: int, quiet_s: float) -> dict[str, float]:
    """Return the seconds of each point. ``number`` makes the prompts differ from those of other rounds."""
    seconds: dict[str, float] = {}
    for rows in DECODES:
        wait_until_quiet(quiet_s, console.print)
        asked = [request(f"s{number}.{rows}.{n}", 32, DECODED) for n in range(rows)]
        seconds[f"decode {rows}"] = run(runner, asked, EngineConfig(rows, STEP_TOKENS, speculation=False)).step_s
    wait_until_quiet(quiet_s, console.print)
    one = [request(f"s{number}.prompt", PROMPT, 1)]
    seconds["prefill"] = run(runner, one, EngineConfig(1, STEP_TOKENS, speculation=False)).first_s
    return seconds


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quiet-s", type=float, default=60.0, help="how long a point waits for a quiet machine")
    parser.add_argument("--plot", type=Path, default=Path("build/roofline.svg"))
    options = parser.parse_args()
    model = Model(LlamaConfig(**SIZES))
    works = {f"decode {rows}": model.decode(rows, 32 + DECODED // 2) for rows in DECODES}
    works["prefill"] = model.prefill(PROMPT)
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: list[Peak] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, library, threads = Path(scratch), peak_library(Path(scratch)), torch.get_num_threads()
        console.log("writing a model of random weights")
        torch.set_default_dtype(torch.bfloat16)
        LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder / "model")
        torch.set_default_dtype(torch.float32)
        settings = load_settings().model_copy(update={"kv_pool_tokens": POOL_TOKENS})
        runner = runner_for(folder / "model", settings, dtype="bfloat16")
        for number in range(options.rounds):
            console.log(f"round {number + 1} of {options.rounds}")
            wait_until_quiet(options.quiet_s, console.print)
            peaks.append(Peak(library.read_rate(threads, ctypes.c_int64(READ_BYTES)), library.multiply_rate(threads)))
            for name, found in measure(runner, number, options.quiet_s).items():
                seconds[name].append(found)
    best = Peak(max(each.bytes_per_s for each in peaks), max(each.operations_per_s for each in peaks))
    took = {name: statistics.median(each) for name, each in seconds.items()}
    shares = {name: best.least_s(works[name]) / took[name] for name in works}
    report(best, works, took, shares)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    rates = {name: (work.operations / work.bytes, work.operations / took[name]) for name, work in works.items()}
    title = f"1.1 billion weights in bfloat16, {threads} threads"
    options.plot.write_text(svg(title, best.bytes_per_s, best.operations_per_s, rates))
    console.print(f"drawn: {options.plot}")
    print(json.dumps({"benchmark": "roofline", "peak": asdict(best), "seconds": took, "shares": shares}))


def report(peak: Peak, works: Mapping[str, Work], took: Mapping[str, float], shares: Mapping[str, float]) -> None:
    """Print the table."""
    console.print(
        f"read {peak.bytes_per_s / 1e9:.1f} GB/s; bfloat16 products {peak.operations_per_s / 1e9:.0f} GFLOP/s"
    )
    table = Table(title=f"prefill: {PROMPT} tokens; decode: a step of so many rows")
    for heading in ("", "ms", "least ms", "bound by", "share"):
        table.add_column(heading, justify="right")
    for name, work in works.items():
        by_memory = work.bytes / peak.bytes_per_s > work.operations / peak.operations_per_s
        table.add_row(
            name,
            f"{took[name] * 1000:.1f}",
            f"{peak.least_s(work) * 1000:.1f}",
            "memory" if by_memory else "products",
            f"{shares[name]:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
