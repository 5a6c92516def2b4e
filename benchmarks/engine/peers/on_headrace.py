"""Our engine in this process: ``python -m benchmarks.engine.peers.on_headrace FOLDER DTYPE``."""

import sys
from concurrent.futures import Future, wait
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path

from safetensors import safe_open

from benchmarks.engine.peers.wire import Ask, Clock, Loaded, Request, serve, submit_on_time
from models.engine.loop import Engine, EngineConfig
from models.engine.requests import Completion, Delta, EngineRequest, SamplingParams
from models.families.config import parse_config
from models.files import read_json, small_files
from models.torch_load import runner_for
from prompts.detokenizer import Detokenizer
from prompts.tokenizer import load_tokenizer
from store.settings import load_settings

_POOL_TOKENS = 40_960
_STEP_TOKENS = 512


def load(folder: str, dtype: str) -> Loaded:
    settings = load_settings().model_copy(update={"torch_threads": 2, "kv_pool_tokens": _POOL_TOKENS})
    tokenizer = load_tokenizer(small_files(Path(folder)))
    runner = runner_for(Path(folder), settings, dtype=dtype)

    def run(ask: Ask) -> Clock:
        config = EngineConfig(max_slots=ask.slots, step_tokens=_STEP_TOKENS)
        clock = Clock(ask.requests)
        engine = Engine(runner, lambda: Detokenizer(tokenizer), config, on_deltas=partial(_note, clock))
        engine.start()
        futures: list[Future[Completion]] = []

        def submit(request: Request) -> None:
            sampling = SamplingParams(request.max_tokens, ignore_eos=True)
            future = engine.submit(EngineRequest(request.id, request.prompt, sampling))
            future.add_done_callback(partial(_settle, clock))
            futures.append(future)

        submit_on_time(clock, ask.requests, submit)
        wait(futures)
        engine.stop(5)
        return clock

    return Loaded(run, version("headrace"), facts=_sizes(Path(folder), dtype))


def _sizes(folder: Path, dtype: str) -> dict[str, float]:
    """Return what weights and KV pool take at the least, in units of 10⁶ bytes."""
    config = parse_config(read_json(folder / "config.json"))
    item_bytes = {"float32": 4, "bfloat16": 2}[dtype]
    with safe_open(folder / "model.safetensors", "np") as weights:
        num_weights = sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return {
        "weights_mb": round(num_weights * item_bytes / 1e6, 1),
        "pool_mb": round(_POOL_TOKENS * per_token * item_bytes / 1e6, 1),
    }


def _note(clock: Clock, deltas: list[Delta]) -> None:
    for delta in deltas:
        clock.note(delta.request_id, delta.token_ids)


def _settle(clock: Clock, future: "Future[Completion]") -> None:
    """Count the tokens that make no text of their own."""
    done = future.result()
    known = len(clock.outcomes[done.request_id].token_ids)
    clock.note(done.request_id, done.token_ids[known:])


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
