"""How the cache is cut and how the weights are filed changes no token."""

from pathlib import Path

import pytest

from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import random_prompts, request, run_all
from tests.models.fidelity.conftest import AssertAnswers
from tests.models.tiny import VOCAB, build, save

HOME = Path(__file__).parents[3] / ".headrace"


def load(folder: Path, block_tokens: int) -> TorchRunner:
    return runner_for(
        folder, Settings(device="cpu", dtype="float32", kv_pool_tokens=4096, kv_block_tokens=block_tokens, home=HOME)
    )


@pytest.mark.parametrize("block_tokens", [1, 3, 16, 64])
def test_the_block_size_changes_no_token(block_tokens: int, tmp_path: Path, assert_answers: AssertAnswers) -> None:
    model = build("mistral, sliding window")
    runner = load(save(model, tmp_path), block_tokens)
    prompts = {f"p{n}": prompt for n, prompt in enumerate(random_prompts(6, longest=50, vocab=VOCAB))}
    requests = [request(prompt, name) for name, prompt in prompts.items()]
    assert_answers(model, prompts, run_all(runner, requests, step_tokens=17))


def test_sharded_weights_are_one_model(tmp_path: Path, assert_answers: AssertAnswers) -> None:
    model = build("qwen2")
    folder = save(model, tmp_path, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    prompts = {f"p{n}": prompt for n, prompt in enumerate(random_prompts(4, longest=30, vocab=VOCAB))}
    requests = [request(prompt, name) for name, prompt in prompts.items()]
    assert_answers(model, prompts, run_all(load(folder, 16), requests))
