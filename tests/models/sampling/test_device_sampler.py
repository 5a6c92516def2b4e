"""Sampling on a device, on CPU tensors: the tokens of the full path, or a note that the candidates were too few."""

import math
from collections.abc import Sequence

import pytest
import torch

from headrace.models.engine.requests import Grammar, SamplingParams
from headrace.models.sampling.device_sampler import NUM_CANDIDATES, SamplingInput, choose, is_simple, sampling_input
from headrace.models.sampling.sampler import draw, uniform
from tests.models.sampling.test_sampler import CUTS

COUNT = 50


def params_of(kind: dict[str, float]) -> SamplingParams:
    return SamplingParams(max_tokens=1, **({"temperature": 1.0} | kind))  # type: ignore[arg-type]


def numbers(count: int = COUNT) -> list[float]:
    return [(n + 0.5) / count for n in range(count)]


def whole_vocabulary(logits: torch.Tensor, params: Sequence[SamplingParams], given: Sequence[float]) -> list[int]:
    """Return the tokens by sorting every logit, for rows with a temperature."""
    found = []
    for row, each, number in zip(logits.double(), params, given, strict=True):
        weights = (row - row.max()).div(each.temperature).exp()
        weights = torch.where(weights < (each.min_p or 0.0), 0.0, weights)
        top, ids = weights.sort(descending=True, stable=True)
        if each.top_k:
            top[each.top_k :] = 0
        share = top.cumsum(0) / top.sum()
        top[share - top / top.sum() >= each.top_p] = 0
        if each.top_k == 0 and each.top_p == 1:
            top, ids = weights, torch.arange(len(weights))
        running = top.cumsum(0)
        found.append(int(ids[int(torch.searchsorted(running, number * running[-1], right=True))]))
    return found


@pytest.mark.parametrize("vocab", [50, 3000])
def test_the_tokens_are_those_of_a_full_sort(vocab: int) -> None:
    """All cuts share one batch, beside greedy rows."""
    inputs = [SamplingInput(params_of(kind), number) for kind in CUTS for number in numbers()]
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(3)).mul(3).repeat(len(inputs) + 1, 1)
    greedy = SamplingInput(params_of({"temperature": 0.0, "top_k": 5}), 0.0)
    found = choose(logits, [*inputs, greedy], NUM_CANDIDATES)
    expected = whole_vocabulary(logits[:-1], [each.params for each in inputs], [each.uniform for each in inputs])
    is_enough = found.is_enough.tolist()
    too_few = {n // COUNT for n, each in enumerate(is_enough) if not each}
    wide = [{"top_k": 100_000}, {"top_p": 0.999, "temperature": 2.0}]  # more of 3,000 tokens than there are candidates
    assert [CUTS[n] for n in sorted(too_few)] == (wide if vocab == 3000 else [])
    pairs = zip(is_enough, found.tokens.tolist(), [*expected, int(logits[0].argmax())], strict=True)
    assert [(mine, other) for enough, mine, other in pairs if enough and mine != other] == []


def test_too_few_candidates_are_reported_row_by_row() -> None:
    """Half of 5,000 nearly equal tokens is more than any number of candidates; a top-k of 7 is not."""
    kinds: list[dict[str, float]] = [{"top_p": 0.5}, {"top_k": 7}, {}, {"temperature": 0.0, "top_p": 0.5}]
    logits = torch.linspace(0, 1e-3, 5000).repeat(len(kinds), 1)
    inputs = [SamplingInput(params_of(kind), 0.7) for kind in kinds]
    found = choose(logits, inputs, 64)
    assert found.is_enough.tolist() == [False, True, True, True]
    full = draw(logits[:3], [each.params for each in inputs[:3]], [0.7] * 3).tolist()
    assert found.tokens.tolist()[1:] == [*full[1:], 4999]
    assert choose(logits, inputs, 5000).tokens.tolist()[:3] == full


def test_a_batch_of_greedy_rows_and_one_with_nan() -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(4))
    for temperature in (0.0, 1.0):
        inputs = [SamplingInput(params_of({"temperature": temperature, "top_p": 0.5}), 0.3)] * 3
        expected = choose(logits.clone(), inputs, 64).tokens.tolist()
        spoilt = logits.clone()
        spoilt[1, 300] = math.nan
        found = choose(spoilt, inputs, 64)
        assert found.is_sound.tolist() == [True, False, True]
        assert [found.tokens.tolist()[n] for n in (0, 2)] == [expected[n] for n in (0, 2)]
        assert all(0 <= token < 700 for token in found.tokens.tolist())


def test_the_random_number_is_the_one_of_the_seed() -> None:
    assert sampling_input(params_of({"seed": 5}), 9).uniform == uniform(5, 9)
    assert sampling_input(params_of({"seed": 5, "temperature": 0.0}), 9).uniform == 0.0


def test_what_needs_the_text_so_far_is_not_simple() -> None:
    assert is_simple(params_of({"top_p": 0.5, "min_p": 0.1}))
    others: list[dict[str, object]] = [
        {"logprobs": 0}, {"presence_penalty": 0.1}, {"min_tokens": 2}, {"logit_bias": {1: 2.0}},
        {"grammar": Grammar("regex", "a")},
    ]  # fmt: skip
    for other in others:
        assert not is_simple(SamplingParams(max_tokens=1, **other))  # type: ignore[arg-type]
