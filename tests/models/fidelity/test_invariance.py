"""By the kernels, who shares a batch changes no bit of the demo model's numbers, and so no token that is drawn by seed.

Torch's own products choose another order of additions for another number of rows, so that there only the tokens of
greedy float32 are promised (the other files).
"""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from headrace.models.engine.runner import Row, StepPlan
from headrace.models.loading.torch_load import runner_for
from headrace.models.native.llama import NativeLlama
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import request
from tests.models.fidelity.ways import Way, drive, mixed_prompts

HOME = Path(__file__).parents[3] / ".headrace"
VOCAB = 49152
BLOCK_TOKENS = 16

# In every run the format with the most code of its own.
DTYPES = [*(pytest.param(dtype, marks=pytest.mark.full) for dtype in ("float32", "bfloat16")), "int8"]


@cache
def load(folder: Path, dtype: str, pool_blocks: int = 256) -> TorchRunner:
    settings = Settings(
        device="cpu", kv_pool_tokens=BLOCK_TOKENS * pool_blocks, kv_block_tokens=BLOCK_TOKENS, home=HOME
    )
    runner = runner_for(folder, settings, dtype=dtype)
    if not isinstance(runner.model, NativeLlama):
        pytest.skip("the kernels need a C++ compiler")
    return runner


class Desk:
    """Makes rows of random texts in blocks of random order, and passes of several rows."""

    def __init__(self, runner: TorchRunner, seed: int) -> None:
        self._runner = runner
        self._draw = random.Random(seed)
        self.free = self._draw.sample(range(runner.num_blocks), runner.num_blocks)

    def row(self, name: str, num_tokens: int, start: int = 0) -> Row:
        blocks = [self.free.pop() for _ in range(-(-(start + num_tokens) // BLOCK_TOKENS))]
        tokens = [self._draw.randrange(3, VOCAB) for _ in range(num_tokens)]
        return Row(request([1], name), tokens, start, blocks, (), sample=True)

    def mates(self, count: int) -> list[Row]:
        """Prompts of all lengths, and single decode tokens with any cached context."""
        sizes = [self._draw.choice([1, 1, 3, 17, 50]) for _ in range(count)]
        return [
            self.row(f"mate {n}", size, start=self._draw.choice([0, 5, 90]) if size == 1 else 0)
            for n, size in enumerate(sizes)
        ]

    @torch.inference_mode()
    def compute(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states of the row called "mine", and the scores after its last token."""
        batch = self._runner.batch_builder.build(StepPlan(tuple(rows)))
        hidden = self._runner.model.forward(batch, self._runner.cache)
        logits = self._runner.model.logits(hidden[list(batch.ends)])
        at = next(n for n, row in enumerate(batch.rows) if row.request.id == "mine")
        end = batch.ends[at] + 1
        return hidden[end - len(batch.rows[at].tokens) : end], logits[at]


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_mates_change_no_bit_in_prefill_and_decode(smollm2: Path, dtype: str, is_full: bool) -> None:
    for num_mates in (1, 5, 23) if is_full else (5,):
        check_batch_mates(load(smollm2, dtype), num_mates)


def check_batch_mates(runner: TorchRunner, num_mates: int) -> None:
    """A prompt of each length, and one token after it, alone and among so many others."""
    desk = Desk(runner, seed=num_mates)
    for length in (1, 7, 80):
        prompt = desk.row("mine", length + 1)
        first = Row(prompt.request, prompt.tokens[:-1], 0, prompt.blocks, (), sample=True)
        last = Row(prompt.request, prompt.tokens[-1:], length, prompt.blocks, (), sample=True)
        alone = desk.compute([first]), desk.compute([last])
        mates = Desk(runner, seed=99)
        mates.free = desk.free.copy()
        together = desk.compute([*mates.mates(num_mates), first]), desk.compute([last, *mates.mates(num_mates)])
        for (hidden, logits), (same_hidden, same_logits) in zip(alone, together, strict=True):
            assert torch.equal(hidden, same_hidden)
            assert torch.equal(logits, same_logits)


KINDS: dict[str, dict[str, object]] = {
    "seeded": {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 11},
    "wide": {"temperature": 1.3, "seed": 5},
    "penalties": {"temperature": 0.7, "seed": 3, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
}
BUSY = Way(pool_blocks=8, step_tokens=48, max_slots=12, speculation=True, handed_over_after=3)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_is_drawn_by_seed_is_the_same_whatever_else_runs(smollm2: Path, dtype: str) -> None:
    """Alone, one by one; and preempted, handed over and guessed at among requests that draw at random."""
    prompts = list(mixed_prompts(VOCAB, count=8, longest=60).values())[3:]
    mine = [
        request(prompt, name, max_tokens=40, **kind)
        for prompt, (name, kind) in zip(prompts, KINDS.items(), strict=False)
    ]
    mates = [request(prompt, f"mate {n}", temperature=1.0, max_tokens=9 + n) for n, prompt in enumerate(prompts[:3])]
    alone = drive(lambda pool: load(smollm2, dtype), mine, Way(max_slots=1)).answers
    busy = drive(lambda pool: load(smollm2, dtype, pool), [*mates, *mine], BUSY)
    assert busy.total("preempted") > 0
    for name, answer in alone.items():
        assert busy.answers[name] == answer, name
