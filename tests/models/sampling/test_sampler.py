"""Choosing tokens, against slow obvious references and transformers' own processors."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Row
from headrace.models.loading.torch_load import runner_for
from headrace.models.sampling.sample_positions import SamplePosition
from headrace.models.sampling.sampler import CHUNK, Sampler, draw, highest_of, inside, uniform
from headrace.store.settings import Settings
from tests.models.driving import random_prompts, request, run_all
from tests.models.tiny import VOCAB, build, save

CPU = torch.device("cpu")


def row(
    prompt: list[int],
    output: list[int],
    request_id: str = "r",
    *,
    banned: tuple[tuple[int, ...], ...] = (),
    **sampling: object,
) -> SamplePosition:
    params = SamplingParams(**({"max_tokens": 99} | sampling))  # type: ignore[arg-type]
    asked = EngineRequest(request_id, tuple(prompt), params, banned=banned)
    return SamplePosition(Row(asked, [0], 0, [0], output, sample=True), 0)


def reference_distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The probabilities that transformers' processors leave of one row."""
    scores = logits[None] / params.temperature
    ids = torch.zeros(1, 1, dtype=torch.long)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return scores.softmax(-1)[0]


CUTS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 100_000},
    {"top_p": 0.5},
    {"top_p": 0.999, "temperature": 2.0},
    {"top_p": 1e-6},
    {"top_k": 20, "top_p": 0.7, "temperature": 0.8},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_k": 20, "top_p": 0.8, "temperature": 1.5},
]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("vocab", [50, 3000])
def test_a_sweep_of_numbers_draws_the_reference_distribution(vocab: int, cut: dict[str, float]) -> None:
    """Inverse transform: evenly spread numbers must pick each token in proportion to its probability."""
    params = SamplingParams(max_tokens=1, **({"temperature": 1.0} | cut))  # type: ignore[arg-type]
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 3
    expected = reference_distribution(logits, params)
    count = 4000 if vocab < 1000 else 1000
    numbers = [(index + 0.5) / count for index in range(count)]
    tokens = draw(logits.expand(count, vocab).clone(), [params] * count, numbers)
    found = torch.bincount(tokens, minlength=vocab) / count
    assert set(tokens.tolist()) <= set(expected.nonzero()[:, 0].tolist())
    assert (found - expected).abs().max() <= 1.01 / count


def test_a_flat_nucleus_reaches_beyond_the_candidates() -> None:
    """Half of 5,000 equal tokens is more than the likeliest thousand."""
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.5)
    logits = torch.linspace(0, 1e-3, 5000)
    tokens = draw(logits.expand(200, 5000).clone(), [params] * 200, [(n + 0.5) / 200 for n in range(200)])
    expected = reference_distribution(logits, params)
    assert bool((expected[tokens] > 0).all())
    assert tokens.unique().numel() == 200
    # The numbers run over the whole nucleus, not over its first thousand tokens.
    assert int(tokens.min()) < 5000 - 2400


def test_batch_mates_do_not_change_a_draw() -> None:
    generator = torch.Generator().manual_seed(11)
    kinds = [*CUTS, {"temperature": 0.0}, {"top_p": 0.999999, "temperature": 2.0}]
    rows = [row([1], [], f"r{n}", seed=n, **({"temperature": 1.0} | kind)) for n, kind in enumerate(kinds)]
    logits = torch.randn(len(rows), 4000, generator=generator) * 0.1
    together = Sampler(4000, CPU).sample(logits.clone(), rows).tokens
    alone = [Sampler(4000, CPU).sample(logits[n : n + 1].clone(), [each]).tokens[0] for n, each in enumerate(rows)]
    assert together.tolist() == [int(token) for token in alone]


def test_the_numbers_of_a_seed_are_fixed_and_spread() -> None:
    """Pinned: a change of these changes every seeded answer that was ever given."""
    assert uniform(0, 0) == pytest.approx(0.321543039748194, abs=1e-14)
    numbers = [uniform(seed, n) for seed in range(30) for n in range(100)]
    assert len(set(numbers)) == 3000
    assert all(0 <= number < 1 for number in numbers)
    counts = Counter(int(number * 10) for number in numbers)
    assert all(240 < counts[tenth] < 360 for tenth in range(10))
    assert 0 <= uniform(2**63 - 1, 131_072) < 1


def test_the_extremes_of_a_number_stay_in_the_vocabulary() -> None:
    params = [SamplingParams(max_tokens=1, temperature=1.0)] * 2
    logits = torch.tensor([[0.0, -1e9, 0.0, -1e9]]).expand(2, 4).clone()
    assert draw(logits, params, [0.0, 1 - 2**-53]).tolist() == [0, 2]


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    params = [SamplingParams(max_tokens=1, temperature=1e-30)]
    logits = torch.tensor([[1.0, 9.0, 8.0]])
    assert draw(logits, params, [0.999]).tolist() == [1]


def test_unseeded_requests_draw_differently() -> None:
    sampler = Sampler(50_000, CPU)
    rows = [row([1], [], f"r{n}", temperature=1.0) for n in range(8)]
    assert len(set(sampler.sample(torch.zeros(8, 50_000), rows).tokens.tolist())) > 4


def slow_penalties(logits: torch.Tensor, prompt: list[int], output: list[int], params: SamplingParams) -> list[float]:
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(
        torch.tensor([[*prompt, *output]]), logits[None].clone()
    )[0].tolist()
    for token, count in Counter(output).items():
        scores[token] -= params.presence_penalty + count * params.frequency_penalty
    return scores


def test_penalties_equal_the_reference_step_by_step() -> None:
    """Greedy, so that one wrong score shows; requests with and without penalties share the batch."""
    draws = random.Random(2)
    vocab = 40
    kinds: list[dict[str, float]] = [
        {"repetition_penalty": 1.8},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"frequency_penalty": -2.0},
        {"repetition_penalty": 0.7, "presence_penalty": -1.0, "frequency_penalty": 0.3},
        {},
    ]
    prompts = [[draws.randrange(vocab) for _ in range(6)] for _ in kinds]
    outputs: list[list[int]] = [[] for _ in kinds]
    sampler = Sampler(vocab, CPU)
    for step in range(25):
        logits = torch.randn(len(kinds), vocab, generator=torch.Generator().manual_seed(step))
        rows = [row(prompts[n], list(outputs[n]), f"r{n}", **kind) for n, kind in enumerate(kinds)]
        expected = []
        for n, each in enumerate(rows):
            scores = slow_penalties(logits[n], prompts[n], outputs[n], each.row.request.sampling)
            expected.append(scores.index(max(scores)))
        tokens = sampler.sample(logits.clone(), rows).tokens.tolist()
        assert tokens == expected
        for output, token in zip(outputs, tokens, strict=True):
            output.append(token)


def test_rules_for_tokens_equal_the_reference_step_by_step() -> None:
    """Greedy, with a bias, without early ends, and with both under a penalty; the batch has a row without any."""
    vocab, eos = 40, 3
    kinds: list[dict[str, Any]] = [
        {"logit_bias": {5: 2.5, 6: -100.0, 39: 1.0}},
        {"min_tokens": 12, "stop_token_ids": (7, 8)},
        {"logit_bias": {eos: 9.0, 8: 3.0}, "min_tokens": 6, "stop_token_ids": (8,), "repetition_penalty": 1.5},
        {"logit_bias": dict.fromkeys((11, 12, 13), 5.0), "bad_words": ("x",)},
        {},
    ]
    banned = {3: ((11,), (12, 12), (12, 13), (13, 13, 12), (2, 2))}
    outputs: list[list[int]] = [[] for _ in kinds]
    sampler = Sampler(vocab, CPU, eos_token_ids={eos})
    for step in range(20):
        logits = torch.randn(len(kinds), vocab, generator=torch.Generator().manual_seed(step))
        expected = []
        for n, (kind, scores, output) in enumerate(zip(kinds, logits, outputs, strict=True)):
            ids = torch.tensor([[1, *output]])
            found = scores[None].clone()
            if bias := kind.get("logit_bias"):
                found = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(ids, found)
            found = RepetitionPenaltyLogitsProcessor(kind.get("repetition_penalty", 1.0))(ids, found)
            ends = [eos, *kind.get("stop_token_ids", ())]
            found = MinNewTokensLengthLogitsProcessor(1, kind.get("min_tokens", 0), ends, device="cpu")(ids, found)
            if n in banned:
                found = NoBadWordsLogitsProcessor([list(sequence) for sequence in banned[n]], eos)(ids, found)
            expected.append(int(found.argmax()))
        rows = [row([1], list(outputs[n]), f"r{n}", banned=banned.get(n, ()), **kind) for n, kind in enumerate(kinds)]
        assert sampler.sample(logits.clone(), rows).tokens.tolist() == expected
        for output, token in zip(outputs, expected, strict=True):
            output.append(token)
    assert eos not in outputs[2][:6]
    assert {eos, 8} & set(outputs[2][6:])
    assert {12, 13} <= set(outputs[3])


def test_a_forgotten_id_starts_over() -> None:
    """An id that comes again, with another prompt, owes nothing to the first."""
    sampler = Sampler(10, CPU)
    logits = torch.tensor([[5.0, 4.0, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert sampler.sample(logits.clone(), [row([9], [0], presence_penalty=2.0)]).tokens.tolist() == [1]
    sampler.forget("r")
    assert sampler.sample(logits.clone(), [row([9], [], presence_penalty=2.0)]).tokens.tolist() == [0]


def test_rows_of_nan_neither_raise_nor_change_their_neighbours() -> None:
    kinds: list[dict[str, float]] = [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}]
    rows = [row([1], [], f"{kind}{n}", seed=1, **each) for kind in "ab" for n, each in enumerate(kinds)]
    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(4))
    expected = Sampler(2000, CPU).sample(logits.clone(), rows).tokens.tolist()
    logits[:3] = math.nan
    assert Sampler(2000, CPU).sample(logits, rows).tokens.tolist()[3:] == expected[3:]


def test_a_seeded_request_says_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    runner = runner_for(save(build("llama"), tmp_path), Settings(device="cpu", dtype="float32", kv_pool_tokens=4096))
    prompts = random_prompts(8, longest=60, vocab=VOCAB)
    kinds: list[dict[str, float]] = [{}, {"top_p": 0.9}, {"top_k": 12}, {"temperature": 0.7, "repetition_penalty": 1.3}]
    requests = [
        request(prompt, f"r{n}", seed=n, **({"temperature": 1.0} | kinds[n % len(kinds)]))
        for n, prompt in enumerate(prompts)
    ]
    together = run_all(runner, requests, step_tokens=24)
    assert len({tokens[:4] for tokens in together.values()}) > 4
    for each in requests:
        assert run_all(runner, [each])[each.id] == together[each.id]
    other_seed = [request(prompts[2], "r2", seed=77, temperature=1.0)]
    assert run_all(runner, other_seed)["r2"] != together["r2"]


@pytest.mark.parametrize("vocab", [7, 512, 1024, 1025, 49_152, 50_001])
def test_the_highest_is_found_in_chunks_as_in_the_whole(vocab: int) -> None:
    """The first of equals, wherever it stands, and in a last chunk that is not full too."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-9, 9, (40, vocab), generator=generator).float()
    logits[0], logits[1, -1] = -5.0, 99.0
    logits[2, vocab // 2] = logits[2, -1] = 50.0
    highest, tokens = highest_of(logits)
    rows = logits.tolist()
    assert highest.tolist() == [max(row) for row in rows]
    assert tokens.tolist() == [row.index(max(row)) for row in rows]


@pytest.mark.parametrize("vocab", [50, 3000])
def test_a_row_is_sound_if_it_has_a_highest_number(vocab: int) -> None:
    """A NaN or plus infinity anywhere breaks its row; minus infinity does if there is nothing else."""
    kinds: list[dict[str, float]] = [{}, {"temperature": 1.0}, {"repetition_penalty": 1.5}]
    spoilt = [
        (slice(0, 1), math.nan, False),
        (slice(vocab - 1, vocab), math.nan, False),
        (slice(9, 10), math.inf, False),
        (slice(0, vocab), -math.inf, False),
        (slice(0, vocab - 1), -math.inf, True),
        (slice(3, 4), -math.inf, True),
    ]
    for kind in kinds:
        logits = torch.randn(len(spoilt) + 1, vocab, generator=torch.Generator().manual_seed(8))
        rows = [row([1], [2], f"r{n}", seed=n, **kind) for n in range(len(logits))]
        expected = Sampler(vocab, CPU).sample(logits.clone(), rows).tokens.tolist()
        for n, (where, value, _) in enumerate(spoilt):
            logits[n, where] = value
        choice = Sampler(vocab, CPU).sample(logits, rows)
        assert choice.is_sound.tolist() == [*(is_sound for *_, is_sound in spoilt), True]
        assert choice.tokens.tolist()[-1] == expected[-1]
        assert all(0 <= token < vocab for token in choice.tokens.tolist())


@pytest.mark.parametrize("vocab", [2 * CHUNK, 2 * CHUNK + 3])
def test_a_chunk_ends_with_the_vocabulary(vocab: int) -> None:
    values = torch.arange(vocab, dtype=torch.float32)[None]
    last = (vocab - 1) // CHUNK
    found = inside(values, torch.tensor([last]), -1.0)[0]
    expected = values[0, last * CHUNK :]
    assert torch.equal(found[: len(expected)], expected)
    assert torch.equal(found[len(expected) :], torch.full((CHUNK - len(expected),), -1.0))
