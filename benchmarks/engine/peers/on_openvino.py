"""OpenVINO GenAI's continuous batching pipeline: ``on_openvino.py FOLDER PRECISION``, the folder as exported."""

import sys
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy
import openvino
import openvino_genai
from wire import Ask, Clock, Loaded, Request, serve, step_through

_POOL_TOKENS = 40_000
_BLOCK_TOKENS = 32
_SLOTS = 64


@lru_cache(1)
def _pipeline(folder: str, precision: str, slots: int) -> Any:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = slots
    scheduler.max_num_batched_tokens = 512
    scheduler.num_kv_blocks = _POOL_TOKENS // _BLOCK_TOKENS
    scheduler.enable_prefix_caching = True
    return openvino_genai.ContinuousBatchingPipeline(
        folder, scheduler, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 2}
    )


def load(folder: str, precision: str) -> Loaded:
    def run(ask: Ask) -> Clock:
        pipeline = _pipeline(folder, precision, ask.slots)
        handles: dict[str, Any] = {}

        def add(request: Request) -> None:
            config = openvino_genai.GenerationConfig(max_new_tokens=request.max_tokens, do_sample=False)
            config.ignore_eos = True
            ids = openvino.Tensor(numpy.array([request.prompt], dtype=numpy.int64))
            handles[request.id] = pipeline.add_request(len(handles) + 1, ids, config)

        def step(clock: Clock) -> None:
            pipeline.step()
            for request_id, handle in list(handles.items()):
                if handle.can_read():
                    for output in handle.read().values():
                        clock.note(request_id, output.generated_ids)

        return step_through(ask, add, step, pipeline.has_non_finished_requests)

    def prepare(slots: int) -> None:
        _pipeline(folder, precision, slots)

    prepare(_SLOTS)
    return Loaded(run, version("openvino-genai"), prepare)


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
