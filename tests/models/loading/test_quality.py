"""The quality measure: zero for the same model, and equal to that of transformers' logits for another."""

import math
from pathlib import Path

import pytest
import torch

from models.loading.quality import measure_all, measure_quality
from models.loading.torch_load import runner_for
from models.runners.torch_runner import TorchRunner
from store.settings import Settings
from tests.models.driving import random_prompts
from tests.models.tiny import VOCAB, build, save


def runner(folder: Path, dtype: str = "float32") -> TorchRunner:
    return runner_for(folder, Settings(device="cpu", dtype=dtype, kv_pool_tokens=128, kv_block_tokens=8))


TEXTS = [text for text in random_prompts(8, longest=90, vocab=VOCAB) if len(text) > 1]


def test_the_numbers_are_those_of_the_reference_implementation(tmp_path: Path) -> None:
    first, second = build("llama"), build("qwen2")
    found = measure_quality(runner(save(first, tmp_path / "first")), runner(save(second, tmp_path / "second")), TEXTS)
    surprise, divergence, agreeing, count = 0.0, 0.0, 0, 0
    for text in TEXTS:
        ids = torch.tensor([text])
        with torch.inference_mode():
            ours, theirs = (model(ids).logits[0, :-1].double().log_softmax(-1) for model in (first, second))
        for position, token in enumerate(text[1:]):
            surprise -= theirs[position, token].item()
            divergence += sum((ours[position].exp() * (ours[position] - theirs[position])).tolist())
            agreeing += int(ours[position].argmax() == theirs[position].argmax())
            count += 1
    assert found.num_tokens == count
    assert found.perplexity == pytest.approx(math.exp(surprise / count), rel=1e-3)
    assert found.kl == pytest.approx(divergence / count, rel=1e-3)
    assert found.top1 == agreeing / count


def test_a_model_is_no_distance_from_itself_and_bfloat16_a_small_one(tmp_path: Path) -> None:
    folder = save(build("llama"), tmp_path)
    exact, again, rough = runner(folder), runner(folder), runner(folder, "bfloat16")
    same, close = measure_all(exact, [again, rough], TEXTS)
    assert (same.kl, same.top1) == (0, 1)
    assert 0 < close.kl < 0.1
    assert close.top1 > 0.8
    assert measure_quality(exact, exact, TEXTS) == same


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    one = runner(save(build("llama"), tmp_path))
    for texts in ([], [[5]], [[5, 6], [7]]):
        with pytest.raises(ValueError, match="two tokens or more"):
            measure_quality(one, one, texts)
    with pytest.raises(ValueError, match="129 tokens do not fit"):
        measure_quality(one, one, [[5] * 129])
