"""The same answers on a CUDA device: run with ``make gpu`` or ``pytest -m gpu`` where there is one.

Deselected otherwise. The same code on CPU tensors is tested in ``runners/test_device_runner.py`` and beside it.
"""

from pathlib import Path

import pytest
import torch

from headrace.models.engine.requests import EngineRequest, Grammar
from headrace.models.families.llama_torch import LlamaModel
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.device_runner import DeviceRunner
from headrace.models.tensors.block_table import BlockTableBatchBuilder
from headrace.store.settings import Settings
from tests.models.driving import count_near_ties, random_prompts, request, run_all
from tests.models.tiny import MODELS, VOCAB, build, save, save_tokenizer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", MODELS)
def test_float32_on_cuda_answers_as_the_reference(name: str, tmp_path: Path) -> None:
    model = build(name)
    runner = runner_for(save(model, tmp_path), Settings(device="cuda", dtype="float32", kv_pool_tokens=4096))
    prompts = {f"p{n}": prompt for n, prompt in enumerate(random_prompts(12, longest=90, vocab=VOCAB))}
    requests = [request(prompt, request_id, max_tokens=20) for request_id, prompt in prompts.items()]
    assert count_near_ties(model, prompts, run_all(runner, requests, step_tokens=32)) <= 1


def test_sampling_on_cuda_is_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    settings = Settings(device="cuda", dtype="float32", kv_pool_tokens=4096)
    runner = runner_for(save(build("llama"), tmp_path), settings)
    requests = [
        request(prompt, f"r{n}", seed=n, temperature=1.0, top_p=0.9, repetition_penalty=1.2)
        for n, prompt in enumerate(random_prompts(8, longest=60, vocab=VOCAB))
    ]
    together = run_all(runner, requests)
    for each in requests:
        assert run_all(runner, [each])[each.id] == together[each.id]


def test_whatever_is_asked_on_cuda_guesses_change_nothing(tmp_path: Path) -> None:
    """Greedy loops of a tiny model are guessed, beside a grammar, penalties and logprobs."""
    settings = Settings(device="cuda", dtype="float32", kv_pool_tokens=4096)
    runner = runner_for(save_tokenizer(save(build("llama"), tmp_path)), settings)
    kinds: list[dict[str, object]] = [
        {},
        {"ignore_eos": False, "grammar": Grammar("regex", "(ab|ba){9}")},
        {"temperature": 0.5, "seed": 3, "logprobs": 2},
        {"frequency_penalty": -0.5},
    ]
    prompts = random_prompts(4, longest=40, vocab=VOCAB)
    requests = [request(prompts[n] * 3, f"r{n}", max_tokens=60, **kind) for n, kind in enumerate(kinds)]
    assert run_all(runner, requests) == run_all(runner, requests, speculation=False)


def sampled_requests(count: int) -> list[EngineRequest]:
    kinds: list[dict[str, object]] = [{}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.8, "top_k": 20}]
    prompts = random_prompts(count, longest=90, vocab=VOCAB)
    return [request(prompt, f"r{n}", seed=n, **kinds[n % 3]) for n, prompt in enumerate(prompts)]


def test_passes_that_begin_early_change_nothing(tmp_path: Path) -> None:
    """Float32, so that the passes with other rows, of a runner that never looks ahead, give the same tokens."""
    folder = save(build("llama"), tmp_path)
    settings = Settings(device="cuda", dtype="float32", kv_pool_tokens=4096)
    careful = runner_for(folder, settings)
    assert isinstance(careful, DeviceRunner)
    careful._look_ahead = lambda plan, passes: None  # type: ignore[method-assign]
    requests = sampled_requests(24)
    found = run_all(runner_for(folder, settings), requests, max_slots=9, step_tokens=64)
    expected = run_all(careful, requests, max_slots=9, step_tokens=64)
    assert sum(found[each.id] != expected[each.id] for each in requests) <= 1  # a near tie


def test_no_step_waits_for_the_device_but_for_its_tokens(smollm2: Path) -> None:
    """Torch raises where the host waits otherwise: an event is not one of these places."""
    runner = runner_for(smollm2, Settings(device="cuda"))
    requests = [request(range(100, 140), f"r{n}", max_tokens=8, temperature=1.0, seed=n, top_p=0.9) for n in range(4)]
    run_all(runner, requests)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(run_all(runner, requests)) == 4
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_block_tables_and_graphs_give_the_answers_of_gathering(smollm2: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Skipped, with the log's reason, where no kernel of this torch takes block tables on this card."""
    caplog.set_level("INFO")
    runner = runner_for(smollm2, Settings(device="cuda"))
    assert isinstance(runner, DeviceRunner)
    if not isinstance(runner.batch_builder, BlockTableBatchBuilder):
        pytest.skip(next(said for said in caplog.messages if said.startswith("block_table_attention_unused")))
    assert any(said.startswith("decode_graphs_recorded") for said in caplog.messages)
    plain = runner_for(smollm2, Settings(device="cuda", decode_graphs="off"))
    prompts = [list(range(100 + 7 * n, 140 + 20 * n)) for n in range(6)]
    for one, prompt in enumerate(prompts):
        scores = [each.score(prompt) for each in (runner, plain)]
        assert torch.allclose(*scores, atol=0.25), f"prompt {one}"
    requests = [request(prompt, f"r{n}", max_tokens=30) for n, prompt in enumerate(prompts)]
    found, expected = run_all(runner, requests), run_all(plain, requests)
    same = sum(found[each.id][:8] == expected[each.id][:8] for each in requests)
    assert same >= 4, "bfloat16 may choose another token at a near tie, not in most answers"


def test_the_pool_takes_the_memory_that_is_left(smollm2: Path) -> None:
    settings = Settings(device="cuda", gpu_memory_share=0.5)
    runner = runner_for(smollm2, settings)
    free, total = torch.cuda.mem_get_info()
    most = -(-runner.context_window // settings.kv_block_tokens) * 256
    assert runner.num_blocks == most or 0.35 * total < free < 0.55 * total
    assert runner.default_settings["max_slots"] > 32


def test_bfloat16_is_the_default_and_runs(smollm2: Path) -> None:
    runner = runner_for(smollm2, Settings(device="cuda", kv_pool_tokens=8192))
    assert isinstance(runner.model, LlamaModel)
    assert runner.model._embedding.dtype == torch.bfloat16
    found = run_all(runner, [request(range(100, 140), f"r{n}", max_tokens=8) for n in range(4)])
    assert len(set(found.values())) == 1
