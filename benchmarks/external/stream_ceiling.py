"""How many streamed tokens a second the path carries when the engine costs nothing, beside ``vllm serve``.

Both run all the time and are asked by turns: Headrace with the fake runner (one API process, one worker, the
dispatcher), and ``vllm serve`` with a model of one tiny layer, each with the same client and the same number of streams
at once. Prints each round when it is measured, then CPU microseconds a token by layer, and as its last line JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.external.stream_load import Measured, Plan, read_streams
from benchmarks.external.vllm_server import vllm_python, vllm_server
from benchmarks.queue import headrace
from benchmarks.queue.costs import cpu_s
from benchmarks.queue.services import running_services

console = Console(stderr=True)
_TOKENIZER = Path(".headrace/models/smollm2")
_PATH = "/v1/completions"


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


@dataclass(frozen=True)
class Contestant:
    """A server that is ready, and its processes by layer."""

    name: str
    plan: Plan
    layers: Mapping[str, Sequence[int]]

    def play(self, num_tokens: int) -> Round:
        """Read all streams to their end. Raises SystemExit if one fails."""
        before = cpu_s(self.layers)
        measured = self._read(self.plan)
        after = cpu_s(self.layers)
        used = {layer: after[layer] - before[layer] for layer in self.layers} | {"client": measured.client_cpu_s}
        return Round(self.name, measured, num_tokens, {layer: 1e6 * s / num_tokens for layer, s in used.items()})

    def warm_up(self) -> None:
        """Read a few streams."""
        self._read(replace(self.plan, bodies=self.plan.bodies[:8]))

    def _read(self, plan: Plan) -> Measured:
        measured = read_streams(plan)
        if measured.errors:
            raise SystemExit(f"{self.name}: {measured.errors}")
        return measured


@contextmanager
def headrace_serving(options: argparse.Namespace) -> Iterator[Contestant]:
    """Headrace with the fake runner: each token costs it next to nothing."""
    changes = {
        "HEADRACE_MAX_SLOTS": str(options.streams),
        "HEADRACE_KV_POOL_TOKENS": str(options.streams * (options.tokens + 64)),
        "HEADRACE_STREAM_DELTAS_PER_S": options.deltas_per_s,
    }
    with running_services() as services, headrace.running(services, console.log, changes) as stack:
        plan = Plan(stack.port, _PATH, _bodies("fake", options), {"Authorization": f"Bearer {stack.api_key}"})
        yield Contestant("Headrace", plan, {**stack.layers, **services.layers})


@contextmanager
def vllm_serving(options: argparse.Namespace) -> Iterator[Contestant]:
    """``vllm serve`` with a model of one tiny layer."""
    python = vllm_python(options.vllm, console.log)
    arguments = ("--max-model-len", "1024", "--max-num-seqs", str(options.streams))
    with tiny_model() as folder, vllm_server(python, folder, "tiny", *arguments) as (port, layers):
        yield Contestant("vllm serve", Plan(port, _PATH, _bodies("tiny", options)), layers)


def _bodies(model: str, options: argparse.Namespace) -> tuple[str, ...]:
    fixed = {"model": model, "max_tokens": options.tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    return tuple(json.dumps({**fixed, "prompt": f"stream {n}"}) for n in range(options.streams))


@contextmanager
def tiny_model() -> Iterator[Path]:
    """Yield the folder of a Llama of one layer, with SmolLM2's tokenizer."""
    import torch  # noqa: PLC0415 - `--only headrace` needs neither torch nor transformers
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - needed for vLLM alone

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


_Serving = Callable[[argparse.Namespace], AbstractContextManager[Contestant]]
_CONTESTANTS: dict[str, _Serving] = {"headrace": headrace_serving, "vllm": vllm_serving}


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


def _play(options: argparse.Namespace) -> list[Round]:
    """Let the contestants play by turns, while there is time for another round; at least one."""
    started = time.monotonic()
    rounds: list[Round] = []
    with ExitStack() as stack:
        contestants = []
        for name, serving in _CONTESTANTS.items():
            if options.only in (None, name):
                console.log(f"{name} starts")
                contestants.append(stack.enter_context(serving(options)))
        for each in contestants:
            each.warm_up()
        for number in range(options.rounds):
            began = time.monotonic()
            for each in contestants[:: -1 if number % 2 else 1]:
                rounds.append(each.play(options.streams * options.tokens))
                console.log(
                    f"round {number + 1} of {options.rounds}: {each.name}, {rounds[-1].tokens_per_s:,.0f} tokens/s"
                )
            now = time.monotonic()
            if now + (now - began) > started + 60 * options.minutes:
                break
    return rounds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deltas-per-s", default="300", help="Headrace's HEADRACE_STREAM_DELTAS_PER_S")
    parser.add_argument("--only", choices=list(_CONTESTANTS))
    parser.add_argument("--vllm", help="an environment with vLLM, or its Python")
    parser.add_argument("--minutes", type=float, default=7.0, help="no further round begins that would end later")
    options = parser.parse_args()
    rounds = _play(options)
    console.print(_table(rounds, options))
    rates = {name: [each.tokens_per_s for each in rounds if each.name == name] for name in {one.name for one in rounds}}
    found = {name: round(statistics.median(each)) for name, each in rates.items()}
    ratios = [
        ours / theirs for ours, theirs in zip(rates.get("Headrace", []), rates.get("vllm serve", []), strict=False)
    ]
    print(json.dumps({"benchmark": "stream_ceiling", **vars(options), "tokens_per_s": found, "ratios": ratios}))


if __name__ == "__main__":
    main()
