"""The runner of a GPU, on CPU tensors: whatever it starts early, the answers are those of the plain runner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.models.engine.requests import EngineRequest, Grammar, RequestId
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.llama_torch import LlamaModel
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.decode_graphs import graph_sizes
from headrace.models.runners.device_runner import DeviceRunner
from headrace.store.settings import Settings
from tests.models.driving import generate, random_prompts, request, run_all
from tests.models.on_cpu_tensors import device_runner
from tests.models.tiny import VOCAB, build, save, save_tokenizer

SETTINGS = Settings(
    device="cpu", dtype="float32", kv_pool_tokens=2048, kv_block_tokens=8, native_kernels="off", max_slots=8
)
SIMPLE: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.8, "seed": 2, "top_p": 0.9},
    {"temperature": 1.2, "seed": 3, "top_k": 9, "min_p": 0.01},
]
OF_THE_HOST: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"ignore_eos": False, "grammar": Grammar("regex", "(ab|ba){9}")},
    {"logit_bias": {5: 1.5}, "min_tokens": 3},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save(build("llama"), tmp_path_factory.mktemp("llama")))


@pytest.fixture(params=[False, True], ids=["gathering", "block tables and graphs"])
def runner(folder: Path, request: pytest.FixtureRequest) -> DeviceRunner:
    return device_runner(folder, SETTINGS, tables=request.param)


def requests_of(kinds: list[dict[str, Any]], count: int) -> list[EngineRequest]:
    prompts = random_prompts(count, longest=60, vocab=VOCAB)
    return [
        request(prompt, f"r{n}", **({"max_tokens": 3 + 5 * n % 31} | kinds[n % len(kinds)]))
        for n, prompt in enumerate(prompts)
    ]


def count_passes(runner: DeviceRunner) -> list[int]:
    """Return a list that gets the number of tokens of each pass from now on."""
    model, sizes = runner.model, list[int]()
    assert isinstance(model, LlamaModel)
    forward = model.forward

    def counted(batch: Any, cache: Any) -> torch.Tensor:
        sizes.append(len(batch.tokens))
        return forward(batch, cache)

    model.forward = counted  # type: ignore[method-assign]
    return sizes


def stopped_early(found: Mapping[RequestId, tuple[int, ...]], requests: list[EngineRequest]) -> list[EngineRequest]:
    """Return the requests, every second of which ends by a token of the middle of its answer."""
    ends = {each.id: found[each.id][len(found[each.id]) // 2] for each in requests[::2]}
    return [
        request(each.prompt, each.id, max_tokens=each.sampling.max_tokens, stop_token_ids=(ends[each.id],))
        if each.id in ends
        else each
        for each in requests
    ]


@pytest.mark.parametrize("kinds", [SIMPLE, [*SIMPLE, *OF_THE_HOST]], ids=["simple", "mixed"])
def test_the_answers_are_those_of_the_plain_runner(folder: Path, runner: DeviceRunner, kinds: Any) -> None:
    """Requests join and end at different steps, in passes with prefill and without."""
    requests, plain = requests_of(kinds, 14), runner_for(folder, SETTINGS)
    expected = run_all(plain, requests, max_slots=6, step_tokens=24, speculation=False)
    assert run_all(runner, requests, max_slots=6, step_tokens=24) == expected
    early = stopped_early(expected, requests)
    assert run_all(runner, early, max_slots=6) == run_all(plain, early, max_slots=6, speculation=False)


def test_a_small_pool_that_preempts_changes_nothing(folder: Path) -> None:
    requests = requests_of(SIMPLE, 10)
    small = SETTINGS.model_copy(update={"kv_pool_tokens": 104})
    expected = run_all(runner_for(folder, SETTINGS), requests, speculation=False)
    assert run_all(device_runner(folder, small, tables=True), requests) == expected


def test_candidates_that_are_too_few_are_chosen_again(folder: Path, runner: DeviceRunner) -> None:
    """Some tokens of each request, in steps that were guessed and in others."""
    kinds = [{"temperature": 1.0, "seed": n, "top_p": top_p} for n, top_p in enumerate((0.3, 0.5, 0.7, 0.95))]
    requests = requests_of(kinds, 10)
    expected = run_all(runner_for(folder, SETTINGS), requests, speculation=False)
    runner.num_candidates = 6
    assert run_all(runner, requests) == expected


def test_the_next_pass_begins_before_the_host_has_the_tokens(runner: DeviceRunner) -> None:
    """And no pass is computed twice if the engine plans what was guessed."""
    sizes = count_passes(runner)
    one, other = request([5, 6, 7, 8], "a", max_tokens=6), request([9, 10], "b", max_tokens=4)
    rows = [Row(each, each.prompt, 0, [n, n + 2], [], sample=True) for n, each in enumerate((one, other))]
    outputs: dict[RequestId, list[int]] = {"a": [], "b": []}
    given = []
    while rows:
        sampled = runner.run(StepPlan(tuple(rows)))
        given.append(list(sizes))
        for each in sampled:
            outputs[each.request_id] += each.tokens
        rows = [
            Row(
                row.request,
                (outputs[row.request.id][-1],),
                row.start + len(row.tokens),
                row.blocks,
                outputs[row.request.id],
                sample=True,
            )
            for row in rows
            if len(outputs[row.request.id]) < row.request.sampling.max_tokens
        ]
    assert given[0][:2] == [6, 2]
    assert [len(each) for each in given] == [2, 3, 4, 5, 6, 6]
    assert [len(output) for output in outputs.values()] == [6, 4]


def test_nan_of_a_pass_that_nobody_asked_for_is_cleared(folder: Path, tmp_path: Path) -> None:
    """A request ends with a token whose embedding is NaN. The pass after it has written into a block of the next."""
    model = build("llama")
    prompt, successor = [9, 10, 11, 12, 13], [20, 21]
    [last] = generate(model, tuple(prompt), 1)
    expected = generate(model, tuple(successor), 2)
    assert last not in expected
    poisoned = build("llama")
    with torch.no_grad():
        poisoned.model.embed_tokens.weight[last] = torch.nan
    runner = device_runner(save(poisoned, tmp_path), SETTINGS, tables=False)
    first, second = request(prompt, "first"), request(successor, "second")
    assert [each.token for each in runner.run(StepPlan((Row(first, prompt, 0, [3], [], sample=True),)))] == [last]
    runner.forget("first")
    sampled = runner.run(StepPlan((Row(second, successor, 0, [3], [], sample=True),)))
    # A prompt's own pass reads nothing of the block.
    sampled += runner.run(StepPlan((Row(second, expected[:1], len(successor), [3], expected[:1], sample=True),)))
    assert [(each.token, each.finite) for each in sampled] == [(token, True) for token in expected]


def decode(each: EngineRequest, blocks: list[int], output: list[int]) -> Row:
    return Row(each, output[-1:], len(each.prompt) + len(output) - 1, blocks, list(output), sample=True)


def test_a_guess_counts_only_for_the_same_request_and_blocks(folder: Path) -> None:
    """A request that lost its last block gets another one; an id that comes again is another request."""
    model, runner = build("llama"), device_runner(folder, SETTINGS, tables=False)
    one, other = request(range(9, 17), "one"), request([*range(9, 17), 7], "one")
    expected = generate(model, tuple(one.prompt), 3)
    first = Row(one, one.prompt, 0, [3, 4], [], sample=True)
    found = [runner.run(StepPlan((first,)))[0].token or 0]
    for _ in range(2):
        found.append(runner.run(StepPlan((decode(one, [3, 5], found),)))[0].token or 0)
    assert found == expected
    runner.run(StepPlan((first,)))
    runner.forget("one")
    last = Row(other, other.prompt[8:], 8, [3, 4], [], sample=True)
    assert [each.token for each in runner.run(StepPlan((last,)))] == generate(model, tuple(other.prompt), 1)


def test_nan_after_a_token_that_was_chosen_again_is_no_fault_of_the_request(folder: Path, tmp_path: Path) -> None:
    """The only candidate has an embedding of NaN, and the pass after it has begun. Then another token is chosen."""
    prompt = [9, 10, 11, 12, 13]
    poisoned = build("llama")
    [candidate] = generate(build("llama"), tuple(prompt), 1)
    with torch.no_grad():
        poisoned.model.embed_tokens.weight[candidate] = torch.nan
    runner = device_runner(save(poisoned, tmp_path), SETTINGS, tables=False)
    runner.num_candidates = 1
    asked = request(prompt, max_tokens=3, temperature=1.5, seed=2, top_p=0.99)
    expected = run_all(runner_for(folder, SETTINGS), [asked], speculation=False)
    assert candidate not in expected["r"]
    assert run_all(runner, [asked]) == expected


def test_graphs_are_recorded_for_few_rows_and_every_eighth() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(8) == [1, 2, 4, 8]
    assert graph_sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert graph_sizes(42)[-2:] == [40, 42]
