"""Speculation changes no token: greedy, sampled, with penalties, grammars, stop strings and whatever else is asked."""

import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, EngineStats, FinishReason, Grammar
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.speculation import Speculation
from headrace.models.families.model import ModelWithCache
from headrace.models.loading.torch_load import runner_for
from headrace.models.native.llama import NativeLlama
from headrace.models.runners.torch_runner import TorchRunner
from headrace.models.sampling.sample_positions import num_accepted
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.torch_batch import TorchBatch, TorchBatchBuilder
from headrace.store.settings import Settings
from tests.models.driving import count_near_ties, random_prompts, request
from tests.models.engine.rig import Ticking
from tests.models.tiny import MODELS, VOCAB, build, save, save_tokenizer

SETTINGS = Settings(device="cpu", dtype="float32", kv_pool_tokens=4096, kv_block_tokens=8)
CPU = torch.device("cpu")


class Letters:
    """A detokenizer with one letter per token."""

    def add(self, token_id: int) -> str:
        return chr(0x100 + token_id)

    def flush(self) -> str:
        return ""


def run(
    runner: TorchRunner, requests: Iterable[EngineRequest], *, speculation: bool = True, max_slots: int = 4
) -> tuple[dict[str, CompletionOutput], EngineStats]:
    config = EngineConfig(max_slots=max_slots, step_tokens=64, speculation=speculation)
    # A pass takes the same whatever is in it, so that drafts pay: how many there are is not the machine's affair.
    engine = LLMEngine(runner, Letters, config, on_deltas=lambda deltas: None, clock=Ticking())
    futures = [engine.submit(each) for each in requests]
    engine.start()
    try:
        done = {each.request_id: each for each in (future.result(120) for future in futures)}
        return done, engine.stats()
    finally:
        engine.stop(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save(build("llama"), tmp_path_factory.mktemp("speculation")))


class Oracle(Speculation):
    """Proposes the given text, with a mistake in about every third token."""

    answers: Mapping[str, Sequence[int]] = {}
    randomly = random.Random(5)

    def draft(self, live: SequenceState, most: int) -> list[int]:
        super().draft(live, most)  # which begins to keep the request's pace
        begin = len(live.output)
        most = max(0, min(most, live.max_tokens - live.num_tokens - 1, self.randomly.randrange(9)))
        if most == 0:
            return []
        drafts = list(self.answers[str(live.id).partition(" at ")[0]][begin : begin + most])
        return [self.randomly.randrange(VOCAB) if self.randomly.random() < 0.1 else token for token in drafts]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> type[Oracle]:
    """Many drafts that hold and some that do not, which no small model would give."""
    monkeypatch.setattr("headrace.models.engine.llm_engine.Speculation", Oracle)
    return Oracle


KINDS: dict[str, dict[str, object]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 11},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "all": {"temperature": 1.2, "seed": 3, "repetition_penalty": 1.1, "frequency_penalty": 0.3, "logprobs": 3},
    "logprobs": {"logprobs": 5},
    "schema": {"ignore_eos": False, "grammar": Grammar("json_schema", '{"type":"array","items":{"type":"integer"}}')},
    "regex": {"ignore_eos": False, "temperature": 1.0, "seed": 2, "grammar": Grammar("regex", "(ab|ba|[0-9]{3}){4,9}")},
    "end": {"ignore_eos": False, "temperature": 3.0, "seed": 8, "max_tokens": 60},
    "biased": {"logit_bias": {3: 4.0, 9: -100.0, 20: 3.0}, "min_p": 0.05, "temperature": 1.5, "seed": 4},
    "banned": {"bad_words": ("x",), "temperature": 1.2, "seed": 6},
    "late end": {
        "ignore_eos": False,
        "temperature": 3.0,
        "seed": 8,
        "max_tokens": 60,
        "min_tokens": 25,
        "stop_token_ids": tuple(range(100, 120)),
    },
}


def asked() -> list[EngineRequest]:
    prompts = random_prompts(len(KINDS), longest=50, vocab=VOCAB)
    kinds = [{"max_tokens": 40} | kind for kind in KINDS.values()]
    made = [request(prompt, name, **kind) for name, prompt, kind in zip(KINDS, prompts, kinds, strict=True)]
    # So many that bans are met at each position of a draft.
    pairs = tuple((first, second) for first in range(VOCAB) for second in range(first % 20, VOCAB, 20))
    return [replace(each, banned=pairs) if each.sampling.bad_words else each for each in made]


def check_same(found: Mapping[str, CompletionOutput], expected: Mapping[str, CompletionOutput]) -> None:
    for name, done in found.items():
        plain = expected[name.partition(" at ")[0]]
        assert (done.token_ids, done.text) == (plain.token_ids, plain.text), name
        # Tokens that came together are shown together.
        assert ("".join(done.deltas), done.finish_reason) == (plain.text, plain.finish_reason), name
        assert [each.top_ids for each in done.logprobs] == [each.top_ids for each in plain.logprobs]
        chosen = [each.logprob for each in plain.logprobs]
        assert [each.logprob for each in done.logprobs] == pytest.approx(chosen, abs=1e-4)


@pytest.fixture
def plain(folder: Path, oracle: type[Oracle]) -> dict[str, CompletionOutput]:
    done, stats = run(runner_for(folder, SETTINGS), asked(), speculation=False)
    assert stats.drafted_tokens == 0
    oracle.answers = {name: each.token_ids for name, each in done.items()}
    return done


@pytest.mark.parametrize(
    "max_slots", [pytest.param(1, marks=pytest.mark.full), 3, pytest.param(8, marks=pytest.mark.full)]
)
def test_whatever_is_asked_the_tokens_are_the_same(
    folder: Path, plain: dict[str, CompletionOutput], max_slots: int
) -> None:
    found, stats = run(runner_for(folder, SETTINGS), asked(), max_slots=max_slots)
    check_same(found, plain)
    assert stats.drafted_tokens > stats.accepted_tokens > 40
    assert stats.output_tokens == sum(len(each.token_ids) for each in plain.values())


def test_stop_strings_end_it_where_they_would(folder: Path, plain: dict[str, CompletionOutput]) -> None:
    stops = []
    for each in asked():
        text = plain[each.id].text
        middle = min(9, len(text) // 2)
        stop = (text[middle : middle + 2], text + "x")
        stops.append(replace(each, sampling=replace(each.sampling, stop=stop)))
    expected, _ = run(runner_for(folder, SETTINGS), stops, speculation=False)
    found, stats = run(runner_for(folder, SETTINGS), stops)
    check_same(found, expected)
    assert {len(each.token_ids) for each in expected.values()} != {len(each.token_ids) for each in plain.values()}
    assert stats.accepted_tokens > 20


def test_preempted_it_says_the_same(folder: Path, plain: dict[str, CompletionOutput]) -> None:
    small = SETTINGS.model_copy(update={"kv_pool_tokens": 160})
    found, stats = run(runner_for(folder, small), asked(), max_slots=8)
    check_same(found, plain)
    assert stats.preempted > 0
    assert stats.accepted_tokens > 0


def test_handed_back_anywhere_it_goes_on(folder: Path, plain: dict[str, CompletionOutput]) -> None:
    runner = runner_for(folder, SETTINGS)
    cut = [
        replace(each, id=f"{each.id} at {num}", pause_after=num)
        for each in asked()
        for num in range(1, len(plain[each.id].token_ids), 7)
    ]
    first, _ = run(runner, cut)
    assert {each.finish_reason for each in first.values()} == {FinishReason.HANDED_BACK}
    assert all(len(first[each.id].token_ids) == each.pause_after for each in cut)
    rest = [
        replace(
            each,
            emitted=tuple(chain(*progress.token_ids)),
            emitted_deltas=progress.deltas,
            emitted_logprobs=progress.logprobs,
            pause_after=None,
        )
        for each in cut
        for progress in [first[each.id].progress]
    ]
    check_same(run(runner, rest)[0], plain)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="the kernels need a C++ compiler")
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_by_the_kernels_not_a_bit_changes(folder: Path, oracle: type[Oracle], dtype: str) -> None:
    home = Path(__file__).parents[2] / ".headrace"
    runner = runner_for(folder, Settings(device="cpu", kv_pool_tokens=4096, home=home), dtype=dtype)
    assert isinstance(runner.model, NativeLlama)
    plain, _ = run(runner, asked(), speculation=False)
    oracle.answers = {name: each.token_ids for name, each in plain.items()}
    found, stats = run(runner, asked())
    assert stats.accepted_tokens > 40
    same = ("token_ids", "text", "logprobs", "finish_reason")
    assert [[getattr(found[name], each) for each in same] for name in plain] == [
        [getattr(done, each) for each in same] for done in plain.values()
    ]


# Three that differ in kind; the others in full runs.
_ALWAYS = ("llama", "mistral, sliding window", "qwen3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _ALWAYS else pytest.mark.full) for name in MODELS]
)
def test_every_family_repeats_itself_as_the_reference_does(name: str, tmp_path: Path) -> None:
    """Prompts that repeat, which tiny models copy from for a while, and random ones."""
    model = build(name)
    prompts = random_prompts(6, longest=40, vocab=VOCAB)
    prompts = {f"p{n}": prompt * (1 + 2 * (n % 2)) for n, prompt in enumerate(prompts)}  # type: ignore[assignment]
    requests = [request(prompt, name, max_tokens=40) for name, prompt in prompts.items()]  # type: ignore[attr-defined]
    done, stats = run(runner_for(save(model, tmp_path), SETTINGS), requests)
    assert count_near_ties(model, prompts, {name: each.token_ids for name, each in done.items()}) == 0  # type: ignore[arg-type]
    assert stats.drafted_tokens > 0


class Markov:
    """A model in which the next token depends only on the last one, so that each text repeats itself."""

    def __init__(self, num_tokens: int) -> None:
        self.config = type("Config", (), {"vocab_size": num_tokens, "windows": (None,)})()
        self.scores = torch.randn(num_tokens, num_tokens, generator=torch.Generator().manual_seed(6)) * 1.5

    def forward(self, batch: TorchBatch, cache: KvCache) -> torch.Tensor:
        return torch.nn.functional.one_hot(batch.tokens, len(self.scores)).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.scores[hidden.argmax(dim=-1)]


def markov_runner(model: Markov) -> TorchRunner:
    cache = KvCache(
        num_layers=1, num_blocks=256, block_tokens=8, num_kv_heads=1, head_dim=2, dtype=torch.float32, device=CPU
    )
    builder = TorchBatchBuilder(block_tokens=8, windows=(None,), device=CPU)
    loaded = ModelWithCache(cast(Any, model), cache, builder)
    return TorchRunner(loaded, context_window=512, eos_token_ids=frozenset(), device=CPU)


@pytest.mark.parametrize(
    "cut",
    [
        *(pytest.param(cut, marks=pytest.mark.full) for cut in ({}, {"temperature": 0.7})),
        {"top_k": 3, "temperature": 1.5},
    ],
)
def test_the_distribution_is_unchanged(cut: dict[str, float]) -> None:
    """Chi-square of what follows what, in texts of which a good part was drafted; and each text is its seed's."""
    num_tokens, sampling = 6, {"temperature": 1.0} | cut
    model = Markov(num_tokens)
    requests = [
        request([n % num_tokens], f"r{n}", max_tokens=150, seed=n, **sampling)  # type: ignore[arg-type]
        for n in range(80)
    ]
    found, stats = run(markov_runner(model), requests)
    assert stats.accepted_tokens > 1500
    scores = model.scores / sampling["temperature"]
    if "top_k" in sampling:
        scores = scores.masked_fill(scores < scores.topk(3).values[:, -1:], -torch.inf)
    shares = scores.softmax(-1).tolist()
    pairs = Counter(pair for each in found.values() for pair in pairwise(each.token_ids))
    statistic, freedom = 0.0, 0
    for first, row in enumerate(shares):
        total = sum(pairs[first, second] for second in range(num_tokens))
        for second, share in enumerate(row):
            if share == 0:
                assert pairs[first, second] == 0
                continue
            statistic += (pairs[first, second] - total * share) ** 2 / (total * share)
            freedom += 1
        freedom -= 1
    # Beyond four standard deviations above its mean: once in about ten thousand.
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    alone, _ = run(markov_runner(model), requests[:9], max_slots=1, speculation=False)
    assert all(found[name].token_ids == each.token_ids for name, each in alone.items())


def test_drafts_that_hold_are_told_apart_from_the_rest() -> None:
    assert num_accepted([], [4]) == 0
    assert num_accepted([4, 5], [4, 5, 6]) == 2
    assert num_accepted([4, 5, 6], [4, 9, 6, 7]) == 1
    assert num_accepted([4], [5, 6]) == 0


def test_what_breaks_behind_a_wrong_guess_breaks_nothing() -> None:
    """Token 5 gives NaN logits; it is proposed but never generated."""
    model = Markov(6)
    model.scores[:, 5] = -9.0
    runner = markov_runner(model)
    said = int(model.scores[1].argmax())
    expected = runner.run(StepPlan((Row(request([0, 1]), [0, 1], 0, [0], [], sample=True),)))[0]
    model.scores[5] = torch.nan
    row = Row(request([0, 1]), [said, 5], 2, [0], [said], sample=True, drafts=[5])
    assert expected.token == said
    [sampled] = runner.run(StepPlan((row,)))
    assert (sampled.finite, sampled.accepted, sampled.token) == (True, (), int(model.scores[said].argmax()))
