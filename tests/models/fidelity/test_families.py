"""Batching must not change an answer: greedy float32 output equals ``transformers`` ``generate`` token for token."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from headrace.models.loading.torch_load import runner_for
from headrace.models.native.llama import NativeLlama
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import generate, request
from tests.models.fidelity.conftest import FAMILIES, AssertAnswers
from tests.models.fidelity.ways import (
    WAYS,
    check_happened,
    drive,
    guessing,
    mixed_prompts,
    prompts_by_answer,
)
from tests.models.tiny import VOCAB, save

HOME = Path(__file__).parents[3] / ".headrace"

Made = Callable[[str], tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make each family's model and folder once."""

    @cache
    def make(family: str) -> tuple[PreTrainedModel, Path]:
        model = FAMILIES[family].build()
        return model, save(model, tmp_path_factory.mktemp("family"))

    return make


def test_a_family_says_the_same_whatever_is_on(
    family: str, way: str, made: Made, assert_answers: AssertAnswers, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = made(family)

    size = FAMILIES[family].block_tokens

    def load(pool_blocks: int) -> TorchRunner:
        settings = Settings(
            device="cpu",
            dtype="float32",
            kv_pool_tokens=pool_blocks * size,
            kv_block_tokens=size,
            native_kernels=FAMILIES[family].native_kernels,
            home=HOME,
        )
        runner = runner_for(folder, settings)
        if settings.native_kernels == "auto" and not isinstance(runner.model, NativeLlama):
            pytest.skip("the kernels need a C++ compiler")
        return runner

    prompts = mixed_prompts(VOCAB, 10 if is_full else 6, longest=11 * size)
    requests = [request(prompt, name, max_tokens=3 * size) for name, prompt in prompts.items()]
    answers = {name: generate(model, tuple(prompt), 3 * size) for name, prompt in prompts.items()}
    monkeypatch.setattr("headrace.models.engine.llm_engine.Speculation", guessing(answers))
    driven = drive(load, requests, WAYS[way])
    assert_answers(model, prompts_by_answer(prompts, driven), driven.answers)
    check_happened(driven, WAYS[way], sum(map(len, prompts.values())))
    assert len({token for answer in driven.answers.values() for token in answer}) > 20, "it says too little"
