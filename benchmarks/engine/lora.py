"""What adapters cost a batch: ``python -m benchmarks.engine.lora --folder FOLDER --rounds 5``.

Sixteen requests decode together in one engine: without adapters, one of them with an adapter, all with one adapter,
and all with four adapters. The adapters are random, of one rank, and change every linear layer. Each mix is measured
once a round, in turn, so that a drift of the machine's speed affects all; a ratio is the median of the rounds' ratios.
A pass runs on one thread and its processor time is counted, so that other load on the machine counts little.
Prints a table and, as its last line, JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.interference import request
from benchmarks.steps import run
from headrace.models.engine.llm_engine import EngineConfig
from headrace.models.engine.requests import Adapter, EngineRequest
from headrace.models.families.lora import adapter_digest
from headrace.models.loading.adapters import base_architecture, load_adapter
from headrace.models.loading.torch_load import runner_for
from headrace.store.settings import load_settings

console = Console(stderr=True)
ROWS = 16
DECODED = 32
PROMPT = 4
MIXES: Mapping[str, Sequence[int | None]] = {
    "no adapter": [None] * ROWS,
    "1 adapter, 1 row": [0] + [None] * (ROWS - 1),
    "1 adapter, 16 rows": [0] * ROWS,
    "4 adapters, 16 rows": [n % 4 for n in range(ROWS)],
}
"""The adapter of each row."""


def make_adapter(folder: Path, base: Path, rank: int, seed: int) -> Path:
    """Write a random adapter for every linear layer of a base."""
    folder.mkdir()
    architecture = base_architecture(base)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(architecture.config.num_layers):
        for name, (num_in, num_out) in architecture.family.adaptable(architecture.config).items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, num_in, generator=draw) * 0.02
            tensors[f"{module}.lora_B.weight"] = torch.randn(num_out, rank, generator=draw) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return folder


def requests_of(mix: Sequence[int | None], adapters: Sequence[Adapter], name: str) -> list[EngineRequest]:
    """Return a request for each row; no two rounds share keys and values."""
    rows = [request(f"{name} {n}", PROMPT, DECODED) for n in range(len(mix))]
    return [replace(row, adapter=None if n is None else adapters[n]) for row, n in zip(rows, mix, strict=True)]


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the output tokens per second of processor time of each mix, by round."""
    found: dict[str, list[float]] = defaultdict(list)
    settings = load_settings().model_copy(update={"kv_pool_tokens": 4096, "torch_threads": 1})
    runner = runner_for(options.folder, settings, dtype=options.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [make_adapter(Path(scratch) / str(n), options.folder, options.rank, n) for n in range(4)]
        adapters = [load_adapter(runner, each, base=options.folder, digest=adapter_digest(each)) for each in folders]
    config = EngineConfig(max_slots=ROWS, speculation=False)
    for turn in range(options.rounds + 1):
        for name, mix in MIXES.items():
            before_s = time.process_time()
            done = run(runner, requests_of(mix, adapters, f"{name} {turn}"), config)
            if turn:  # the first round warms up
                found[name].append(done.output_tokens / (time.process_time() - before_s))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.lora", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the base")
    parser.add_argument("--dtype", default="bfloat16", help="its number format")
    parser.add_argument("--rank", type=int, default=16, help="the rank of the adapters")
    parser.add_argument("--rounds", type=int, default=5, help="how often each mix is measured")
    options = parser.parse_args()
    found = measure(options)
    table = Table(title=f"{options.folder.name}, {options.dtype}, rank {options.rank}, {ROWS} rows")
    for name in ("mix", "tokens/s of CPU", "ratio"):
        table.add_column(name)
    result = {}
    for name, speeds in found.items():
        ratio = statistics.median(mine / base for mine, base in zip(speeds, found["no adapter"], strict=True))
        result[name] = {"tokens_per_s": round(statistics.median(speeds), 1), "ratio": round(ratio, 3)}
        table.add_row(name, f"{statistics.median(speeds):.0f}", f"{ratio:.2f}")
    console.print(table)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
