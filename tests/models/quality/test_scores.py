"""The distance of a version: zero for the same model, and equal to that of transformers' logits for another."""

import math
from pathlib import Path

import pytest
import torch

from headrace.models.loading.torch_load import runner_for
from headrace.models.quality import scores
from headrace.models.quality.scores import Quality, TextScores, compare, of_itself, score_texts
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import random_prompts
from tests.models.tiny import VOCAB, build, save


def runner(folder: Path, dtype: str = "float32") -> TorchRunner:
    return runner_for(folder, Settings(device="cpu", dtype=dtype, kv_pool_tokens=128, kv_block_tokens=8))


TEXTS = [text for text in random_prompts(8, longest=90, vocab=VOCAB) if len(text) > 1]


def distance(reference: TorchRunner, version: TorchRunner) -> Quality:
    return compare(score_texts(reference, TEXTS), version, TEXTS)


def test_the_numbers_are_those_of_the_reference_implementation(tmp_path: Path) -> None:
    first, second = build("llama"), build("qwen2")
    found = distance(runner(save(first, tmp_path / "first")), runner(save(second, tmp_path / "second")))
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
    exact, rough = runner(folder), runner(folder, "bfloat16")
    same, close = distance(exact, exact), distance(exact, rough)
    assert abs(same.kl) < 1e-9
    assert same.top1 == 1
    assert of_itself(score_texts(exact, TEXTS)).perplexity == pytest.approx(same.perplexity)
    assert 0 < close.kl < 0.1
    assert close.top1 > 0.8


def test_few_kept_tokens_make_the_divergence_smaller_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(build("llama"), tmp_path)
    exact, rough = runner(folder), runner(folder, "bfloat16")
    whole = distance(exact, rough)
    monkeypatch.setattr(scores, "KEPT", 64)
    some = distance(exact, rough)
    assert 0.5 * whole.kl < some.kl < whole.kl
    assert (some.top1, some.perplexity, some.num_tokens) == (whole.top1, whole.perplexity, whole.num_tokens)


def test_no_text_is_begun_after_the_time(tmp_path: Path) -> None:
    exact = runner(save(build("llama"), tmp_path))
    (only,) = score_texts(exact, TEXTS, longest_s=0)
    assert compare([only], exact, TEXTS).num_tokens == len(TEXTS[0]) - 1


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    one = runner(save(build("llama"), tmp_path))
    for texts in ([], [[5]], [[5, 6], [7]]):
        with pytest.raises(ValueError, match="two tokens"):
            score_texts(one, texts)
    with pytest.raises(ValueError, match="129 tokens"):
        score_texts(one, [[5] * 129])


def test_a_version_is_its_own_reference() -> None:
    scored = [
        TextScores(torch.tensor([math.log(0.25), math.log(0.5)]), torch.zeros(2, 1), torch.zeros(2, 1)),
        TextScores(torch.tensor([math.log(0.125)]), torch.zeros(1, 1), torch.zeros(1, 1)),
    ]
    own = of_itself(scored)
    assert (own.kl, own.top1, own.num_tokens) == (0.0, 1.0, 3)
    assert own.perplexity == pytest.approx(4.0)
