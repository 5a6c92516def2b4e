"""Requests through the real engine, and the reference's outputs for the same prompts."""

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import torch
from transformers import GenerationConfig, PreTrainedModel

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Runner

NEAR_TIE = 1e-4
"""Logits closer than this may swap with the order of additions; only the reference's own two best are excused."""


class NoText:
    """A detokenizer for tests that look at token ids."""

    def add(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def request(prompt: Sequence[int], request_id: str = "r", **sampling: object) -> EngineRequest:
    """Return a request that is not ended by an end-of-sequence token."""
    values: dict[str, object] = {"max_tokens": 24, "ignore_eos": True} | sampling
    return EngineRequest(request_id, tuple(prompt), SamplingParams(**values))  # type: ignore[arg-type]


def run_all(
    runner: Runner,
    requests: Iterable[EngineRequest],
    *,
    max_slots: int = 32,
    step_tokens: int = 512,
    speculation: bool = True,
) -> dict[str, tuple[int, ...]]:
    """Run requests together and return their tokens by request id."""
    config = EngineConfig(max_slots, step_tokens, speculation)
    engine = LLMEngine(runner, NoText, config, on_deltas=lambda deltas: None)
    try:
        # Before the start, so that all of them compete from the first step on.
        futures = [engine.submit(each) for each in requests]
        engine.start()
        done = [future.result(timeout=120) for future in futures]
    finally:
        engine.stop(30)
    return {each.request_id: each.token_ids for each in done}


def random_prompts(count: int, longest: int, vocab: int, seed: int = 5) -> list[list[int]]:
    """Return prompts of very different lengths, one token among them."""
    draw = random.Random(seed)
    lengths = [1, 2, longest, *(int(longest ** draw.random()) for _ in range(count - 3))]
    return [[draw.randrange(3, vocab) for _ in range(length)] for length in lengths]


@cache
def generate(model: PreTrainedModel, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """Return the reference's greedy continuation of a prompt alone."""
    ids = torch.tensor([list(prompt)])
    model.generation_config.eos_token_id = None  # an argument of None would mean the model's own
    config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return found[0, len(prompt) :].tolist()


def count_near_ties(
    model: PreTrainedModel, prompts: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
) -> int:
    """Compare continuations with the reference's; return how many differ where the reference itself nearly ties.

    Raises AssertionError for any other difference.
    """
    near_ties = 0
    for request_id, prompt in prompts.items():
        mine = list(found[request_id])
        theirs = generate(model, tuple(prompt), len(mine))
        if mine == theirs:
            continue
        at = next(index for index, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *theirs[:at]]])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert best - second < NEAR_TIE, (
            f"{request_id} (prompt of {len(prompt)}) differs at token {at}: {mine[at]} for {theirs[at]}, "
            f"which leads by {best - second}"
        )
        near_ties += 1
    return near_ties
