"""transformers' ``generate``, one request after the other: ``on_generate.py FOLDER DTYPE``."""

import sys
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer
from wire import Ask, Clock, Loaded, serve, step_through


class _Noting(BaseStreamer):
    """Notes each token as it comes; the first call brings the prompt."""

    def __init__(self, clock: Clock, request_id: str) -> None:
        self._clock, self._request_id = clock, request_id
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self._clock.note(self._request_id, value.tolist())
        self._has_prompt = True

    def end(self) -> None:
        pass


def load(folder: str, dtype: str) -> Loaded:
    torch.set_num_threads(2)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None

    def run(ask: Ask) -> Clock:
        waiting: list[Any] = []

        def step(clock: Clock) -> None:
            request = waiting.pop(0)
            ids = torch.tensor([request.prompt])
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=request.max_tokens,
                pad_token_id=0,
                streamer=_Noting(clock, request.id),
            )

        return step_through(ask, waiting.append, step, lambda: bool(waiting))

    return Loaded(run, transformers.__version__)


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
