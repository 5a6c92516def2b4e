"""The same jobs without the queue: our engine in process, or transformers' ``generate`` one by one.

Each measurement runs as a program of its own (``python -m benchmarks.bare engine|generate MODEL``, jobs as JSON on its
input), so that it has its process and threads to itself. The last line of its output is JSON: seconds, output tokens,
and the texts.
"""

import json
import sys

import torch
import transformers

from benchmarks.engine import Round, requests_of, run_engine, run_generate
from benchmarks.workload import ChatJob, chat_jobs
from models.engine.loop import EngineConfig
from models.load import load_runner
from prompts.tokenizer import Tokenizer, tokenizer_for
from store.db import Database
from store.registry import ModelVersion, read_file, resolve
from store.settings import Settings, load_settings


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
