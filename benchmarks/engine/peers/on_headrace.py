"""Our engine in this process: ``python -m benchmarks.engine.peers.on_headrace FOLDER DTYPE``, and flags."""

import argparse
from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path

from safetensors import safe_open

from benchmarks.engine.peers.wire import Ask, Clock, Loaded, Request, serve, submit_on_time
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, Delta, EngineRequest, SamplingParams
from headrace.models.families.llama import parse_config
from headrace.models.families.model_folder import read_json, small_files
from headrace.models.loading.torch_load import runner_for
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import load_settings

_SLOTS = 64
_POOL_TOKENS = 40_960
_STEP_TOKENS = 512
_STOP_S = 5.0


class _Ours:
    """One engine that lives as long as its number of slots is asked for, as the peers' do, its cache with it."""

    def __init__(self, folder: Path, dtype: str, changes: Mapping[str, object], *, speculation: bool) -> None:
        settings = load_settings().model_copy(update=changes)
        self._tokenizer = load_tokenizer(small_files(folder))
        self.runner = runner_for(folder, settings, dtype=dtype)
        self._step_tokens = self.runner.default_settings.get("step_tokens", _STEP_TOKENS)
        self._speculation = speculation
        self._engine: LLMEngine | None = None
        self._slots = 0
        self._clock = Clock(())

    def prepare(self, slots: int) -> None:
        """Let an engine with so many slots be there."""
        if slots == self._slots:
            return
        self.stop()
        config = EngineConfig(max_slots=slots, step_tokens=self._step_tokens, speculation=self._speculation)
        self._engine = LLMEngine(self.runner, lambda: Detokenizer(self._tokenizer), config, on_deltas=self._note)
        self._engine.start()
        self._slots = slots

    def stop(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.stop(_STOP_S)

    def run(self, ask: Ask) -> Clock:
        """Compute the requests."""
        engine, futures = self._engine, list[Future[CompletionOutput]]()
        assert engine is not None
        clock = self._clock = Clock(ask.requests)

        def submit(request: Request) -> None:
            sampling = SamplingParams(request.max_tokens, ignore_eos=True)
            future = engine.submit(EngineRequest(request.id, request.prompt, sampling))
            future.add_done_callback(partial(_settle, clock))
            futures.append(future)

        submit_on_time(clock, ask.requests, submit)
        wait(futures)
        return clock

    def _note(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self._clock.note(delta.request_id, delta.token_ids)
        if self._engine is not None:
            stats = self._engine.stats()
            self._clock.note_kv(1 - stats.free_blocks / stats.total_blocks)


def _settle(clock: Clock, future: "Future[CompletionOutput]") -> None:
    """Count the tokens that make no text of their own."""
    done = future.result()
    known = len(clock.outcomes[done.request_id].token_ids)
    clock.note(done.request_id, done.token_ids[known:])


def load(folder: Path, dtype: str, *, native: bool, speculation: bool) -> Loaded:
    """Return the engine on a CPU, of two threads and a pool of a fixed size."""
    changes = {"torch_threads": 2, "kv_pool_tokens": _POOL_TOKENS, "native_kernels": "auto" if native else "off"}
    ours = _Ours(folder, dtype, changes, speculation=speculation)
    ours.prepare(_SLOTS)
    return Loaded(ours.run, version("headrace"), ours.prepare, stop=ours.stop, facts=_sizes(folder, dtype))


def load_on_gpu(folder: Path, dtype: str, *, graphs: bool) -> Loaded:
    """Return the engine with the defaults for a GPU."""
    changes = {"device": "cuda", "decode_graphs": "auto" if graphs else "off"}
    ours = _Ours(folder, dtype, changes, speculation=True)
    pool_tokens = ours.runner.num_blocks * ours.runner.block_tokens
    return Loaded(ours.run, version("headrace"), ours.prepare, stop=ours.stop, facts={"pool_tokens": pool_tokens})


def _sizes(folder: Path, dtype: str) -> dict[str, float]:
    """Return what weights and KV pool take at the least, in units of 10⁶ bytes."""
    config = parse_config(read_json(folder / "config.json"))
    item_bytes = 4 if dtype == "float32" else 2
    with safe_open(folder / "model.safetensors", "np") as weights:
        names = weights.keys()  # which the library has, but no iteration
        num_weights = sum(prod(weights.get_slice(name).get_shape()) for name in names)
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return {
        "weights_mb": round(num_weights * (1 if dtype == "int8" else item_bytes) / 1e6, 1),
        "pool_mb": round(_POOL_TOKENS * per_token * item_bytes / 1e6, 1),
    }


def main() -> None:
    """Serve what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype")
    parser.add_argument("--no-native", dest="native", action="store_false")
    parser.add_argument("--no-speculation", dest="speculation", action="store_false")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false")
    args = parser.parse_args()
    if args.gpu:
        serve(lambda: load_on_gpu(args.folder, args.dtype, graphs=args.graphs))
        return
    serve(lambda: load(args.folder, args.dtype, native=args.native, speculation=args.speculation))


if __name__ == "__main__":
    main()
