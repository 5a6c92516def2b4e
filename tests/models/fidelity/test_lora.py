"""A request with a LoRA adapter is answered as by the base with the adapter merged, alone and in every batch."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import PreTrainedModel

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import Adapter, EngineRequest
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.lora import adapter_digest
from headrace.models.loading.adapters import load_adapter
from headrace.models.loading.torch_load import runner_for
from headrace.models.native.llama import NativeLlama
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models import tiny
from tests.models.adapters import ALL, ATTENTION, adapt
from tests.models.driving import NEAR_TIE, NoText, random_prompts, request, run_all

HOME = Path(__file__).parents[3] / ".headrace"
Kernels = Literal["auto", "off"]

_ADAPTERS: Mapping[str, dict[str, object]] = {
    "everything": {"modules": ALL, "rank": 4},
    "attention": {"modules": ATTENTION, "rank": 16, "use_rslora": True},
    "some": {"modules": ("v_proj", "up_proj", "down_proj"), "rank": 3, "rank_pattern": {"up_proj": 7}},
}


class Made:
    """A base, its runner, and adapters of several ranks and modules; ``references`` has the base and each merged."""

    def __init__(self, folder: Path, family: str, kernels: Kernels, dtype: str = "float32") -> None:
        model = tiny.build(family)
        base = tiny.save(model, folder / "base")
        settings = Settings(device="cpu", kv_pool_tokens=4096, native_kernels=kernels, home=HOME)
        self.runner: TorchRunner = runner_for(base, settings, dtype=dtype)
        if kernels == "auto" and not isinstance(self.runner.model, NativeLlama):
            pytest.skip("the kernels need a C++ compiler")
        self.references: dict[str, PreTrainedModel] = {"base": model}
        self.adapters: dict[str, Adapter | None] = {"base": None}
        for number, (name, options) in enumerate(_ADAPTERS.items()):
            place = folder / name
            self.references[name] = adapt(model, place, seed=number, **options)  # type: ignore[arg-type]
            self.adapters[name] = load_adapter(self.runner, place, base=base, digest=adapter_digest(place))

    def requests(self, count: int, longest: int = 120) -> list[EngineRequest]:
        """Return requests with all adapters in turn; prompts come back with another adapter."""
        prompts = random_prompts(max(3, count // 2), longest=longest, vocab=tiny.VOCAB)
        names = list(self.adapters)
        return [
            replace(
                request(prompts[n // 2 % len(prompts)], f"{names[n % len(names)]} {n}"),
                adapter=self.adapters[names[n % len(names)]],
            )
            for n in range(count)
        ]

    def assert_references(self, requests: list[EngineRequest], found: Mapping[str, tuple[int, ...]]) -> None:
        """Assert that each answer is the reference's."""
        for each in requests:
            reference, answer = self.references[str(each.id).partition(" ")[0]], found[str(each.id)]
            # One pass for the whole answer: it is greedy if every token of it is the best after those before it.
            with torch.inference_mode():
                scores = reference(torch.tensor([[*each.prompt, *answer[:-1]]])).logits[0, len(each.prompt) - 1 :]
            behind = scores.max(dim=1).values - scores[range(len(answer)), list(answer)]
            assert behind.max() < NEAR_TIE, f"{each.id} differs at token {int(behind.argmax())}"


@pytest.mark.parametrize(
    ("family", "kernels"),
    [
        ("llama", "auto"),
        ("llama, biases", "auto"),
        ("qwen3", "auto"),
        ("mistral, sliding window", "auto"),
        ("qwen3", "off"),
    ],
)
def test_sixteen_mixed_requests_are_answered_as_by_merged_weights(
    family: str, kernels: Kernels, tmp_path: Path
) -> None:
    made = Made(tmp_path, family, kernels)
    requests = made.requests(16)
    together = run_all(made.runner, requests, step_tokens=61)
    made.assert_references(requests, together)
    assert together["base 0"] != together["everything 1"], "the adapter changes nothing"
    alone = {each.id: run_all(made.runner, [each])[str(each.id)] for each in requests[:4]}
    assert alone == {name: together[str(name)] for name in alone}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_mixed_batch_changes_no_bit_of_a_row(dtype: str, tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", "auto", dtype)
    long, other = random_prompts(4, longest=100, vocab=tiny.VOCAB)[2:4]

    def scores(*parts: tuple[str, list[int], int, range]) -> torch.Tensor:
        rows = tuple(
            Row(replace(request(range(600), f"r{n}"), adapter=made.adapters[name]), tokens, start, blocks, (), True)
            for n, (name, tokens, start, blocks) in enumerate(parts)
        )
        with torch.inference_mode():
            batch = made.runner.batch_builder.build(StepPlan(rows))
            return made.runner.model.logits(made.runner.model.forward(batch, made.runner.cache)[[batch.ends[0]]])

    found = {}
    for name in made.adapters:
        mates = [each for each in made.adapters if each != name]
        found[name] = scores((name, long, 0, range(8)))
        half = len(long) // 2
        scores((name, long[:half], 0, range(8)), (mates[0], other, 0, range(20, 30)))
        mixed = scores(
            (name, long[half:], half, range(8)),
            (mates[0], other[:1], len(other), range(20, 30)),
            *((mate, [9, 8, n], 0, range(40 + n, 41 + n)) for n, mate in enumerate([*mates, name])),
        )
        assert torch.equal(found[name], mixed)
    if dtype != "float32":
        for name, reference in made.references.items():
            with torch.inference_mode():
                exact = reference(torch.tensor([long])).logits[0, -1]
            assert ((found[name][0] - exact).norm() / exact.norm()).item() < 0.15


def test_requests_with_different_adapters_share_no_keys_and_values(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", "auto")
    (prompt,) = [each for each in random_prompts(3, longest=100, vocab=tiny.VOCAB) if len(each) == 100]
    engine = LLMEngine(made.runner, NoText, EngineConfig(), on_deltas=lambda deltas: None)
    engine.start()
    try:
        cached = {}
        for turn in (1, 2):
            for name, adapter in made.adapters.items():
                asked = replace(request(prompt, f"{name} {turn}"), adapter=adapter)
                done = engine.submit(asked).result(timeout=60)
                cached[done.request_id] = done.num_cached_tokens
                made.assert_references([asked], {str(asked.id): done.token_ids})
    finally:
        engine.stop(30)
    assert {name for name, count in cached.items() if count} == {f"{name} 2" for name in made.adapters}


def test_random_orders_of_joining_change_no_answer(tmp_path: Path) -> None:
    """Few slots, small chunks and drafts: requests with and without adapters join and leave between steps."""
    made = Made(tmp_path, "llama", "auto")
    requests = made.requests(20, longest=60)
    random.Random(3).shuffle(requests)
    made.assert_references(requests, run_all(made.runner, requests, max_slots=5, step_tokens=19))
