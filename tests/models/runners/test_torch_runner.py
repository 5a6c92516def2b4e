"""The runner's own promises: broken numbers stay with their request, plans may be shaped anyhow."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import NumericalError
from headrace.models.engine.runner import Row, RunnerBroken, Sampled, StepPlan
from headrace.models.families.llama_torch import LlamaModel
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import NoText, generate, random_prompts, request, run_all
from tests.models.on_cpu_tensors import device_runner
from tests.models.tiny import VOCAB, build, save

POISON = 7
"""The token with a NaN embedding in the poisoned model."""

SETTINGS = Settings(device="cpu", dtype="float32", kv_pool_tokens=1024, kv_block_tokens=8)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama")


@pytest.fixture(params=["the CPU's", "a GPU's"])
def runner(model: PreTrainedModel, tmp_path: Path, request: pytest.FixtureRequest) -> TorchRunner:
    """A runner of a model with a NaN embedding of ``POISON``; a poisoned prompt breaks only its own logits."""
    poisoned = build("llama")
    with torch.no_grad():
        poisoned.model.embed_tokens.weight[POISON] = torch.nan
    if request.param == "a GPU's":
        return device_runner(save(poisoned, tmp_path), SETTINGS, tables=False)
    return runner_for(save(poisoned, tmp_path), SETTINGS)


def clean_prompts(count: int) -> list[list[int]]:
    prompts = random_prompts(count, longest=40, vocab=VOCAB)
    return [[token if token != POISON else 8 for token in prompt] for prompt in prompts]


def one(runner: TorchRunner, prompt: Sequence[int], blocks: Sequence[int], **values: object) -> Row:
    return Row(request(prompt, **values), list(prompt), 0, list(blocks), [], sample=True)  # type: ignore[arg-type]


def test_a_broken_request_ends_alone(runner: TorchRunner) -> None:
    prompts = clean_prompts(6)
    good = [request(prompt, f"good {n}", max_tokens=12) for n, prompt in enumerate(prompts)]
    expected = run_all(runner, good)
    engine = LLMEngine(runner, NoText, EngineConfig(8, 16), on_deltas=lambda deltas: None)
    bad = engine.submit(request([9, POISON, *range(10, 40)], "bad"))
    futures = [engine.submit(each) for each in good]
    engine.start()
    try:
        with pytest.raises(NumericalError):
            bad.result(60)
        assert {future.result(60).request_id: future.result(60).token_ids for future in futures} == expected
    finally:
        engine.stop(10)


def test_blocks_of_a_broken_request_are_clean_for_the_next(runner: TorchRunner, model: PreTrainedModel) -> None:
    """Its successor in a half-filled block must not read its NaN, even if it never came to a sample."""
    chunk = Row(request([POISON] * 30, "bad"), [POISON] * 24, 0, [3, 4, 5, 6], [], sample=False)
    assert runner.run(StepPlan((chunk,))) == [Sampled("bad", None, finite=False)]
    prompt = clean_prompts(3)[2][:3]
    sampled = runner.run(StepPlan((one(runner, prompt, [3]),)))
    assert [(each.token, each.finite) for each in sampled] == [(generate(model, tuple(prompt), 1)[0], True)]
    decode = Row(request(prompt), [sampled[0].token or 0], len(prompt), [3], [sampled[0].token or 0], sample=True)
    assert runner.run(StepPlan((decode,)))[0].token == generate(model, tuple(prompt), 2)[1]


def test_what_a_broken_request_only_read_stays_as_it_was(runner: TorchRunner, model: PreTrainedModel) -> None:
    """It shares its first block with another request, which goes on reading it."""
    prompt = clean_prompts(3)[2][:11]
    first = one(runner, prompt, [3, 4])
    [token] = [each.token or 0 for each in runner.run(StepPlan((first,)))]
    bad = Row(request([*prompt[:8], POISON], "bad"), [POISON], 8, [3, 5], [], sample=True)
    decode = Row(first.request, [token], len(prompt), [3, 4], [token], sample=True)
    assert not runner.run(StepPlan((bad,)))[0].finite
    assert runner.run(StepPlan((decode,)))[0].token == generate(model, tuple(prompt), 2)[1]


def test_a_request_broken_in_an_early_chunk_is_broken_for_good(runner: TorchRunner) -> None:
    broken = request([POISON, 9, 10], "bad")
    runner.run(StepPlan((Row(broken, [POISON, 9], 0, [0], [], sample=False),)))
    sampled = runner.run(StepPlan((Row(broken, [10], 2, [0], [], sample=True),)))
    assert [(each.token, each.finite) for each in sampled] == [(None, False)]
    runner.forget("bad")
    again = Row(request([9, 10], "bad"), [9, 10], 0, [0], [], sample=True)
    assert runner.run(StepPlan((again,)))[0].finite


def test_the_last_token_of_a_chunk_breaks_it_beside_a_row_that_samples(
    runner: TorchRunner, model: PreTrainedModel
) -> None:
    good = one(runner, [9, 10], [0], request_id="good")
    bad = Row(request([9, 11, POISON, 12], "bad"), [9, 11, POISON], 0, [1], [], sample=False)
    sampled, broken = runner.run(StepPlan((good, bad)))
    assert (sampled.token, sampled.finite) == (generate(model, (9, 10), 1)[0], True)
    assert broken == Sampled("bad", None, finite=False)


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_scores_that_are_not_finite_break_a_request_whose_states_are(tmp_path: Path, *, is_on_gpu: bool) -> None:
    poisoned = build("llama")
    with torch.no_grad():
        poisoned.lm_head.weight[5] = torch.nan
    folder = save(poisoned, tmp_path)
    runner = device_runner(folder, SETTINGS, tables=False) if is_on_gpu else runner_for(folder, SETTINGS)
    rows = (one(runner, [9, 10], [0], request_id="a"), one(runner, [11], [1], request_id="b"))
    assert runner.run(StepPlan(rows)) == [Sampled(name, None, finite=False) for name in ("a", "b")]


def test_results_come_in_plan_order_whatever_the_mix(runner: TorchRunner, model: PreTrainedModel) -> None:
    """Chunks before single tokens, and rows that do not sample between."""
    prompts = [[9, 10, 11, 12, 13], [14], [15, 16], [17]]
    rows = []
    for n, prompt in enumerate(prompts):
        row = one(runner, prompt, [n], request_id=f"r{n}")
        rows.append(Row(row.request, row.tokens, 0, row.blocks, [], sample=n != 2))
    sampled = runner.run(StepPlan(tuple(rows)))
    assert [each.request_id for each in sampled] == ["r0", "r1", "r3"]
    expected = [generate(model, tuple(prompts[n]), 1)[0] for n in (0, 1, 3)]
    assert [each.token for each in sampled] == expected
    assert runner.run(StepPlan(())) == []


def test_a_lost_device_ends_the_engine(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*arguments: object) -> torch.Tensor:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(LlamaModel, "forward", lost)
    with pytest.raises(RunnerBroken, match="device-side assert"):
        runner.run(StepPlan((one(runner, [9], [0]),)))


def test_memory_that_runs_out_is_said_so(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's allocator raises a plain RuntimeError."""

    def exhausted(*arguments: object) -> torch.Tensor:
        return torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(LlamaModel, "forward", exhausted)
    with pytest.raises(MemoryError):
        runner.run(StepPlan((one(runner, [9], [0]),)))


def test_nothing_is_kept_for_the_forgotten(runner: TorchRunner) -> None:
    requests = [request([9, 10], f"r{n}", presence_penalty=1.0) for n in range(4)]
    run_all(runner, [*requests])
    assert len(runner.sampler) == 0


def test_padding_reads_no_block_that_breaks_in_the_same_step(runner: TorchRunner, model: PreTrainedModel) -> None:
    """Two decode rows share a group, the shorter one padded, while a prefill fills block 0 with NaN."""
    prompts = {"long": list(range(20, 37)), "short": list(range(40, 49))}
    blocks = {"long": [1, 2, 3], "short": [4, 5]}
    first = {name: one(runner, prompt, blocks[name], request_id=name) for name, prompt in prompts.items()}
    tokens = {each.request_id: each.token or 0 for each in runner.run(StepPlan(tuple(first.values())))}
    decodes = [
        Row(first[name].request, [tokens[name]], len(prompt), blocks[name], [tokens[name]], sample=True)
        for name, prompt in prompts.items()
    ]
    bad = Row(request([POISON] * 8, "bad"), [POISON] * 8, 0, [0], [], sample=False)
    *sound, broken = runner.run(StepPlan((*decodes, bad)))
    assert not broken.finite
    for each in sound:
        assert each.token == generate(model, tuple(prompts[each.request_id]), 2)[1]
