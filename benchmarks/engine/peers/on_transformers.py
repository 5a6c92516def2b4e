"""transformers' continuous batching: ``on_transformers.py FOLDER DTYPE``, with SDPA, for there is no flash on a CPU."""

import sys
from typing import Any

import torch
import transformers
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from wire import Ask, Clock, Loaded, Request, in_background, serve, submit_on_time

_POOL_TOKENS = 40_000
_BLOCK_TOKENS = 32
_NO_TOKEN = -1


def load(folder: str, dtype: str) -> Loaded:
    torch.set_num_threads(2)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )

    def run(ask: Ask) -> Clock:
        config = ContinuousBatchingConfig(
            page_size=_BLOCK_TOKENS,
            num_blocks=_POOL_TOKENS // _BLOCK_TOKENS,
            max_batch_tokens=512,
            max_requests_per_batch=ask.slots,
            auto_switch_to_flash=False,
        )
        greedy = transformers.GenerationConfig(do_sample=False, eos_token_id=_NO_TOKEN, pad_token_id=0)
        with model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=config, block=True
        ) as manager:
            return _follow(manager, ask)

    return Loaded(run, transformers.__version__)


def _follow(manager: Any, ask: Ask) -> Clock:
    """Hand in every request in time and read what comes, from two threads."""
    clock = Clock(ask.requests)

    def submit(request: Request) -> None:
        manager.add_request(
            list(request.prompt),
            request_id=request.id,
            max_new_tokens=request.max_tokens,
            streaming=True,
            eos_token_id=_NO_TOKEN,
        )

    running = {each.id for each in ask.requests}
    with in_background(lambda: submit_on_time(clock, ask.requests, submit)):
        while running:
            output = manager.get_result(timeout=60)
            if output is None or output.error:
                raise SystemExit(f"no result came: {output and output.error}")
            known = len(clock.outcomes[output.request_id].token_ids)
            clock.note(output.request_id, output.generated_tokens[known:])
            if output.is_finished():
                running.discard(output.request_id)
    return clock


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
