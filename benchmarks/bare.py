"""The same jobs without the queue: our engine in process, or transformers' ``generate`` one by one.

Each measurement runs as a program of its own (``python -m benchmarks.bare engine|generate MODEL``, jobs as JSON on its
input), so that it has its process and threads to itself. The last line of its output is JSON: seconds, output tokens,
and the texts.
"""

import json
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.workload import ChatJob
from models.engine.loop import Engine, EngineConfig
from models.engine.requests import EngineRequest, SamplingParams
from models.load import load_runner
from prompts.detokenizer import Detokenizer
from prompts.prompt import build_prompt
from prompts.tokenizer import Tokenizer, tokenizer_for
from store.db import Database
from store.registry import ModelVersion, read_file, resolve
from store.settings import Settings, load_settings


def _request(name: str, job: ChatJob, tokenizer: Tokenizer) -> EngineRequest:
    prompt = build_prompt(tokenizer, job.payload.input)
    return EngineRequest(name, tuple(prompt), SamplingParams(job.max_tokens, ignore_eos=job.ignore_eos))


def run_engine(jobs: list[ChatJob], version: ModelVersion, tokenizer: Tokenizer, settings: Settings) -> dict[str, Any]:
    """All jobs at once, with the slots and the budget that the worker has."""
    config = EngineConfig(max_slots=settings.max_slots, step_tokens=settings.step_tokens)
    engine = Engine(load_runner(version, settings), lambda: Detokenizer(tokenizer), config, on_deltas=lambda _: None)
    engine.start()
    engine.submit(_request("warm-up", ChatJob("Hello.", 8), tokenizer)).result()
    start = time.perf_counter()
    futures = [engine.submit(_request(f"r{n}", job, tokenizer)) for n, job in enumerate(jobs)]
    wait(futures)
    seconds = time.perf_counter() - start
    outputs = [future.result().token_ids for future in futures]
    stats = engine.stats()
    engine.stop(1)
    return {"seconds": seconds, "tokens": sum(map(len, outputs)), "mean_batch": stats.mean_batch, "outputs": outputs}


def run_generate(jobs: list[ChatJob], source: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """One after the other, greedy, float32: what most people start with, and the reference for every answer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    outputs: list[list[int]] = []
    seconds = 0.0
    for job in [ChatJob("Hello.", 8), *jobs]:
        ids = torch.tensor([build_prompt(tokenizer, job.payload.input)])
        start = time.perf_counter()
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=job.max_tokens if job.ignore_eos else None,
            max_new_tokens=job.max_tokens,
            pad_token_id=0,
        )
        seconds += time.perf_counter() - start if outputs or job is jobs[0] else 0.0
        outputs.append(found[0, ids.shape[1] :].tolist())
    return {"seconds": seconds, "tokens": sum(map(len, outputs[1:])), "outputs": outputs[1:]}


def main(kind: str, model: str) -> None:
    """Run the measurement in this process and print it."""
    settings = load_settings()
    db = Database(settings.database_url, pool_size=1, application_name="benchmark")
    version = resolve(db, model)
    tokenizer = tokenizer_for(version, lambda digest: read_file(db, digest))
    jobs = [ChatJob(**job) for job in json.load(sys.stdin)]
    if kind == "engine":
        result = run_engine(jobs, version, tokenizer, settings)
    else:
        result = run_generate(jobs, Path(version.source), tokenizer)
    texts = [tokenizer.decode(list(ids)) for ids in result.pop("outputs")]
    print(json.dumps({**result, "texts": texts}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
