"""The effect of CPU affinity in the kernels: ``python -m benchmarks.cpu_affinity --turns 15``.

Two processes compute decode steps by turns of one second. One of them has kernels without pinning. Both run once as
the machine is and once beside a process that computes 20 of every 40 ms. Counts and CPU time are per step. Prints JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.llama import LlamaConfig, Rope
from headrace.models.families.safetensors_reader import Weights
from headrace.models.native.build import build
from headrace.models.native.library import Kernels
from headrace.models.native.llama import NativeBatchBuilder, NativeKvCache, NativeLlama

_CONFIG = LlamaConfig(4096, 576, 1536, 9, 3, 64, 1e-5, 2048, Rope(10_000.0), tie_embeddings=True, windows=(None,) * 30)
_ROWS, _START, _BLOCKS = 8, 200, 16
_NEIGHBOUR = """
import time
while True:
    end = time.monotonic() + 0.02
    while time.monotonic() < end: pass
    time.sleep(0.02)
"""


class _RandomWeights(Weights):
    """Random tensors of any name."""

    def __init__(self) -> None:
        """Read no files."""

    def __contains__(self, name: str) -> bool:
        return False

    def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a random tensor."""
        return torch.randn(shape) * 0.02


def _child(folder: Path, pinned: bool) -> None:
    """Compute steps for one second after each line on stdin, and print the figures of a step."""
    library = build(folder, defines=() if pinned else ("HEADRACE_UNPINNED",))
    torch.set_num_threads(os.cpu_count() or 1)
    model = NativeLlama(Kernels(library), _CONFIG, _RandomWeights(), context=2048, dtype=torch.bfloat16)
    cache = NativeKvCache(_CONFIG, num_blocks=_ROWS * _BLOCKS, block_tokens=16, dtype=torch.bfloat16)
    rows = []
    for n in range(_ROWS):
        request = EngineRequest(str(n), tuple(range(300)), SamplingParams(max_tokens=1))
        rows.append(Row(request, (5,), _START, range(n * _BLOCKS, (n + 1) * _BLOCKS), (), sample=True))
    batch = NativeBatchBuilder(1).build(StepPlan(tuple(rows)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        before, started, steps = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
        while time.perf_counter() - started < 1:
            model.forward(batch, cache)
            steps += 1
        after, took_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - started
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        figures = {
            "steps_per_s": steps / took_s,
            "cpu_ms": 1000 * cpu_s / steps,
            "involuntary_switches": (after.ru_nivcsw - before.ru_nivcsw) / steps,
            "voluntary_switches": (after.ru_nvcsw - before.ru_nvcsw) / steps,
        }
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


def _start(folder: Path, name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.cpu_affinity", "--child", name, "--folder", str(folder)]
    environment = {**os.environ, "GOMP_SPINCOUNT": "1000"}  # noqa: TID251 - for the children
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def _turn(child: "subprocess.Popen[str]") -> dict[str, float]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    figures: dict[str, float] = json.loads(child.stdout.readline())
    return figures


def _measure(children: "dict[str, subprocess.Popen[str]]", turns: int, case: str) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    for number in range(turns):
        for name in sorted(children, reverse=number % 2 == 0):
            found[name].append(_turn(children[name]))
    pairs = zip(found["pinned"], found["unpinned"], strict=True)
    ratio = statistics.median(one["steps_per_s"] / other["steps_per_s"] for one, other in pairs)
    for name, each in found.items():
        medians = {key: round(statistics.median(one[key] for one in each), 2) for key in each[0]}
        print(json.dumps({"case": case, "kernels": name, **medians}))
    print(json.dumps({"case": case, "pinned_to_unpinned": round(ratio, 3)}), flush=True)


def main() -> None:
    """Measure both cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--child", choices=("pinned", "unpinned"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.folder, pinned=options.child == "pinned")
        return
    with tempfile.TemporaryDirectory() as folder:
        children = {name: _start(Path(folder), name) for name in ("pinned", "unpinned")}
        _measure(children, options.turns, "as it is")
        neighbour = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR])
        _measure(children, options.turns, "beside a neighbour")
        neighbour.terminate()
        for child in children.values():
            child.terminate()


if __name__ == "__main__":
    main()
