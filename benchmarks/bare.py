"""The same jobs without the queue: our engine in process, or transformers' ``generate`` one by one.

Each measurement runs as a program of its own (``python -m benchmarks.bare engine|generate MODEL``, jobs as JSON on its
input), so that it has its process and threads to itself. The last line of its output is JSON: seconds, output tokens,
and the texts.
"""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.workload import ChatJob, chat_jobs
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, SamplingParams
from headrace.models.engine.runner import Runner
from headrace.models.loading.load import load_runner
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tasks.generate import build_prompt
from headrace.prompts.tokenizer import Tokenizer, tokenizer_for
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion, read_file, resolve
from headrace.store.settings import Settings, load_settings


@dataclass(frozen=True)
class Round:
    """One measurement: the output, and its duration."""

    token_ids: tuple[Sequence[int], ...]
    seconds: float
    mean_batch: float | None = None

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return sum(map(len, self.token_ids))


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
    engine = LLMEngine(runner, lambda: Detokenizer(tokenizer), config, on_deltas=lambda deltas: None)
    engine.start()
    start = time.perf_counter()
    futures = [engine.submit(each) for each in requests]
    wait(futures)
    seconds = time.perf_counter() - start
    done: list[CompletionOutput] = [future.result() for future in futures]
    mean_batch = engine.stats().mean_batch
    engine.stop(5)
    return Round(
        token_ids=tuple(each.token_ids for each in done),
        seconds=seconds,
        mean_batch=mean_batch,
    )


def run_generate(model: Any, requests: Sequence[EngineRequest]) -> Round:
    """One after the other, greedy, continuing after an end of sequence if the requests ask for it."""
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


def engine_round(jobs: list[ChatJob], version: ModelVersion, tokenizer: Tokenizer, settings: Settings) -> Round:
    """All jobs at once, with the slots and the budget that a worker of these settings has."""
    config = EngineConfig(max_slots=settings.max_slots, step_tokens=settings.step_tokens)
    runner = load_runner(version, settings)
    run_engine(runner, tokenizer, requests_of(tokenizer, chat_jobs(1)), config)
    return run_engine(runner, tokenizer, requests_of(tokenizer, jobs), config)


def generate_round(jobs: list[ChatJob], version: ModelVersion, tokenizer: Tokenizer) -> Round:
    """What most people start with, in float32: the reference for every answer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(version.source, dtype=torch.float32)
    run_generate(model, requests_of(tokenizer, chat_jobs(1)))
    return run_generate(model, requests_of(tokenizer, jobs))


def main(kind: str, model: str) -> None:
    """Run the measurement in this process and print it."""
    settings = load_settings()
    db = Database(settings.database_url, pool_size=1, application_name="benchmark")
    version = resolve(db, model)
    tokenizer = tokenizer_for(version, lambda digest: read_file(db, digest))
    jobs = [ChatJob(**job) for job in json.load(sys.stdin)]
    if kind == "engine":
        found = engine_round(jobs, version, tokenizer, settings)
    else:
        found = generate_round(jobs, version, tokenizer)
    texts = [tokenizer.decode(list(ids)) for ids in found.token_ids]
    print(
        json.dumps({"seconds": found.seconds, "tokens": found.tokens, "mean_batch": found.mean_batch, "texts": texts})
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
