"""The bare engine against transformers' ``generate`` one by one: ``python -m benchmarks.engine --requests 24``.

No services: a model folder, our engine in this process, and the reference beside it. In each round both compute jobs
of one workload, so that a machine whose speed drifts touches both; the ratio is of the rounds' medians. Prints a small
table and, as its last line, JSON.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.workload import ChatJob, chat_jobs
from models.catalog import fetch
from models.engine.loop import Engine, EngineConfig
from models.engine.requests import Completion, EngineRequest, SamplingParams
from models.engine.runner import Runner
from models.files import small_files
from models.torch_load import runner_for
from prompts.detokenizer import Detokenizer
from prompts.prompt import build_prompt
from prompts.tokenizer import Tokenizer, load_tokenizer
from store.settings import Settings, load_settings

console = Console(stderr=True)


@dataclass(frozen=True)
class Round:
    """One measurement: what was produced, how long it took, how long the first tokens and the slowest request took."""

    token_ids: tuple[Sequence[int], ...]
    seconds: float
    first_token_s: float | None = None
    slowest_s: float | None = None
    mean_batch: float | None = None

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return sum(map(len, self.token_ids))

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.tokens / self.seconds


def requests_of(tokenizer: Tokenizer, jobs: Sequence[ChatJob]) -> list[EngineRequest]:
    """The jobs as the engine takes them."""
    return [
        EngineRequest(
            f"r{n}",
            tuple(build_prompt(tokenizer, job.payload.input)),
            SamplingParams(job.max_tokens, ignore_eos=job.ignore_eos),
        )
        for n, job in enumerate(jobs)
    ]


def run_engine(runner: Runner, tokenizer: Tokenizer, requests: Sequence[EngineRequest], config: EngineConfig) -> Round:
    """All requests at once."""
    engine = Engine(runner, lambda: Detokenizer(tokenizer), config, on_deltas=lambda deltas: None)
    engine.start()
    start = time.perf_counter()
    futures = [engine.submit(each) for each in requests]
    wait(futures)
    seconds = time.perf_counter() - start
    done: list[Completion] = [future.result() for future in futures]
    mean_batch = engine.stats().mean_batch
    engine.stop(5)
    return Round(
        token_ids=tuple(each.token_ids for each in done),
        seconds=seconds,
        first_token_s=statistics.mean(each.first_token_s or 0.0 for each in done),
        slowest_s=max(each.total_s for each in done),
        mean_batch=mean_batch,
    )


def run_generate(model: Any, requests: Sequence[EngineRequest]) -> Round:
    """One after the other, greedy, going on after an end of sequence if the requests say so."""
    stops = model.generation_config.eos_token_id
    outputs: list[list[int]] = []
    start = time.perf_counter()
    for each in requests:
        ids = torch.tensor([each.prompt])
        model.generation_config.eos_token_id = None if each.sampling.ignore_eos else stops
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=each.sampling.max_tokens,
            pad_token_id=0,
        )
        outputs.append(found[0, ids.shape[1] :].tolist())
    model.generation_config.eos_token_id = stops
    return Round(tuple(outputs), time.perf_counter() - start)


def compare(folder: Path, dtype: str, options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Measure one number format and return the medians."""
    tokenizer = load_tokenizer(small_files(folder))
    requests = requests_of(tokenizer, chat_jobs(options.requests))
    # Spread over the workload, or their prompts may all be short.
    few = requests[:: max(1, len(requests) // options.reference_requests)][: options.reference_requests]
    runner = runner_for(folder, settings, dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    warm = requests_of(tokenizer, chat_jobs(1))
    config = EngineConfig(max_slots=options.slots, step_tokens=settings.step_tokens)
    run_engine(runner, tokenizer, warm, config)
    run_generate(model, warm)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(run_engine(runner, tokenizer, requests, config))
        theirs.append(run_generate(model, few))
    middle = sorted(ours, key=lambda each: each.seconds)[len(ours) // 2]
    reference = statistics.median(each.tokens_per_s for each in theirs)
    return {
        "dtype": dtype,
        "requests": len(requests),
        "reference_requests": len(few),
        "slots": options.slots,
        "output_tokens": middle.tokens,
        "tokens_per_s": round(middle.tokens_per_s, 1),
        "mean_first_token_s": round(middle.first_token_s or 0.0, 2),
        "slowest_s": round(middle.slowest_s or 0.0, 2),
        "mean_batch": round(middle.mean_batch or 0.0, 1),
        "generate_tokens_per_s": round(reference, 1),
        "ratio": round(middle.tokens_per_s / reference, 2),
        "rounds": [round(a.tokens_per_s / b.tokens_per_s, 2) for a, b in zip(ours, theirs, strict=True)],
    }


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print the table for people and the JSON for programs."""
    table = Table(title="output tokens/s, bare engine against transformers generate one by one")
    for heading in ("dtype", "engine", "generate", "ratio", "first token s", "slowest s", "mean batch"):
        table.add_column(heading, justify="right")
    for each in results:
        keys = (
            "dtype",
            "tokens_per_s",
            "generate_tokens_per_s",
            "ratio",
            "mean_first_token_s",
            "slowest_s",
            "mean_batch",
        )
        table.add_row(*(str(each[key]) for key in keys))
    console.print(table)
    machine = {"threads": torch.get_num_threads(), "processor": platform.processor(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "engine", **machine, "results": list(results)}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--requests", type=int, default=24, help="jobs for the engine, all at once")
    parser.add_argument("--reference-requests", type=int, default=6, help="how many of them generate computes")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtypes", default="float32", help="comma-separated: float32, bfloat16")
    options = parser.parse_args()
    settings = load_settings()
    folder = fetch("smollm2", settings.home / "models")
    show([compare(folder, dtype, options, settings) for dtype in options.dtypes.split(",")])


if __name__ == "__main__":
    main()
