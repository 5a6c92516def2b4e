"""``make gpu``, after the tests that need a card: our engine beside vLLM on the same card, in one table.

Each contestant is a process of its own that has the whole card in its turn, with its own defaults: both compute the
same token ids, at most 256 requests together. Prints a table and, as its last line, JSON. ``--check`` only says whether
there is a card.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine.contestants import PEERS
from benchmarks.engine.measured import WrongAnswer, measured
from benchmarks.engine.peers.wire import Request
from benchmarks.engine.process import DoesNotRun, PeerProcess
from benchmarks.engine.workloads import Encode, Shape, requests_of
from headrace.models.catalog import fetch
from headrace.models.families.model_folder import small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import load_settings

SLOTS = 256
_WARM_UP = Shape(requests=32, prompt=(16, 300), output=(4, 24))

console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """The medians of one contestant's rounds. ``kv_peak`` is the largest share of its KV cache that was in use."""

    name: str
    version: str
    tokens_per_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    kv_peak: float
    pool_tokens: int


def card() -> str:
    """Return the card's name. Exits with a sentence if there is none."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "make gpu needs a CUDA device, and torch finds none here. On a machine with an NVIDIA card, check the "
            "driver (nvidia-smi) and that the installed torch is a CUDA build."
        )
    return torch.cuda.get_device_name()


def contestants(folder: Path, vllm: Path | None) -> dict[str, list[str | Path]]:
    """Return the command of each contestant's process. vLLM's is run by the Python of its own environment."""
    ours = [sys.executable, "-m", "benchmarks.engine.peers.on_headrace", folder, "bfloat16", "--gpu"]
    found: dict[str, list[str | Path]] = {"Headrace": ours, "Headrace without decode graphs": [*ours, "--no-graphs"]}
    if vllm is not None:
        found["vLLM"] = [vllm, PEERS / "on_vllm.py", folder, "bfloat16", "gpu"]
    return found


def measure(name: str, argv: Sequence[str | Path], rounds: Sequence[Sequence[Request]]) -> Row:
    """Run a contestant. The first of ``rounds`` warms it up. Raises DoesNotRun or WrongAnswer."""
    with PeerProcess(name.replace(" ", "-"), argv) as process:
        process.ask(SLOTS, rounds[0])
        answers = [(each, process.ask(SLOTS, each)) for each in rounds[1:]]
        ready = process.ready
    figures = [measured(*each) for each in answers]
    return Row(
        name,
        str(ready["version"]),
        median(each.tokens_per_s for each in figures),
        median(each.ttft_mean_s for each in figures),
        median(each.ttft_p99_s for each in figures),
        max(answer.kv_peak for _, answer in answers),
        int(ready.get("pool_tokens", 0)),
    )


def table(title: str, rows: Sequence[Row]) -> Table:
    """Return the table of all contestants."""
    found = Table(title=title)
    for heading in ("", "version", "tokens/s", "TTFT mean / p99, ms", "KV use, most", "KV pool, tokens"):
        found.add_column(heading, justify="left" if heading in {"", "version"} else "right")
    for each in rows:
        firsts = f"{1000 * each.ttft_mean_s:.0f} / {1000 * each.ttft_p99_s:.0f}"
        pool = f"{each.pool_tokens:,}"
        found.add_row(each.name, each.version, f"{each.tokens_per_s:,.0f}", firsts, f"{each.kv_peak:.0%}", pool)
    return found


def workload(encode: Encode, shape: Shape, count: int) -> list[tuple[Request, ...]]:
    """Return a warm-up and ``count`` rounds, each with words of its own."""
    return [requests_of(shape if number else _WARM_UP, encode, seed=7, number=number) for number in range(count + 1)]


def compare(
    commands: dict[str, list[str | Path]], rounds: Sequence[Sequence[Request]], say: Callable[[str], None]
) -> list[Row]:
    """Let each contestant have the card in its turn. One that does not run is left out, with the reason."""
    rows = []
    for name, argv in commands.items():
        say(f"{name} …")
        try:
            rows.append(measure(name, argv, rounds))
        except (DoesNotRun, WrongAnswer) as error:
            say(f"{name} is absent: {error}")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.gpu", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check that there is a card")
    parser.add_argument("--folder", type=Path, help="a model folder of the Llama family; by default the demo model")
    parser.add_argument("--vllm", type=Path, help="the Python of an environment with vLLM")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    name = card()
    if options.check:
        return
    folder = (options.folder or fetch("smollm2", load_settings().home / "models")).absolute()
    tokenizer = load_tokenizer(small_files(folder))
    rounds = workload(
        lambda text: tokenizer.encode(text, add_special=False), Shape(requests=options.requests), options.rounds
    )
    rows = compare(contestants(folder, options.vllm), rounds, lambda said: console.log(said, markup=False))
    if options.vllm is None:
        console.print("vLLM is absent: give make gpu VLLM=PYTHON, the Python of an environment with it", markup=False)
    console.print(table(f"{name}: {options.requests} requests at once, {folder.name}, bfloat16", rows))
    print(json.dumps({"benchmark": "gpu", "card": name, "model": folder.name, "rows": [asdict(each) for each in rows]}))


if __name__ == "__main__":
    main()
