"""The same answers on a CUDA device: run with ``pytest -m gpu`` where there is one; deselected otherwise."""

from pathlib import Path

import pytest
import torch

from models.engine.requests import Grammar
from models.families.llama_torch import LlamaModel
from models.loading.torch_load import runner_for
from store.settings import Settings
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


def test_bfloat16_is_the_default_and_runs(smollm2: Path) -> None:
    runner = runner_for(smollm2, Settings(device="cuda", kv_pool_tokens=8192))
    assert isinstance(runner._model, LlamaModel)
    assert runner._model._embedding.dtype == torch.bfloat16
    found = run_all(runner, [request(range(100, 140), f"r{n}", max_tokens=8) for n in range(4)])
    assert len(set(found.values())) == 1
