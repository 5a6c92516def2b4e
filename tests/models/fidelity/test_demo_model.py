"""The demo model answers as ``transformers`` ``generate`` does, alone and whatever is on."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.prompts.tasks.generate import build_prompt
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput
from tests.models.driving import request, run_all
from tests.models.fidelity.conftest import AssertAnswers
from tests.models.fidelity.ways import WAYS, Way, drive, prompts_by_answer

HOME = Path(__file__).parents[3] / ".headrace"

QUESTIONS = [
    "Name three colors.",
    "What is 2 + 2?",
    "Write a short poem about rivers and mountains.",
    "Why is the sky blue? Explain it to a child. " * 12,
    "Réponds en français : quelle est la capitale de l'Italie ?",
    "x",
    "List the planets of the solar system, one a line.",
    "Tell me a story. " * 30,
]


@pytest.fixture(scope="session")
def prompts(smollm2_tokenizer: Tokenizer) -> dict[str, list[int]]:
    return {
        f"question {index}": build_prompt(
            smollm2_tokenizer, GenerateInput(messages=(ChatMessage(role=Role.USER, content=question),))
        )
        for index, question in enumerate(QUESTIONS)
    }


DEMO_WAYS = {
    "all of it": Way(pool_blocks=19, step_tokens=40, speculation=True, handed_over_after=5, max_slots=12),
    **{f"families, {name}": replace(way, pool_blocks=max(19, way.pool_blocks)) for name, way in WAYS.items()},
}


@pytest.mark.full
@pytest.mark.parametrize("way", DEMO_WAYS)
def test_it_says_the_same_whatever_is_on(
    way: str,
    smollm2: Path,
    smollm2_reference: PreTrainedModel,
    prompts: dict[str, list[int]],
    assert_answers: AssertAnswers,
) -> None:
    """With guesses that come from the texts themselves."""

    def load(pool_blocks: int) -> TorchRunner:
        settings = Settings(
            device="cpu", dtype="float32", kv_pool_tokens=16 * pool_blocks, kv_block_tokens=16, home=HOME
        )
        return runner_for(smollm2, settings)

    requests = [request(prompt, name, max_tokens=16) for name, prompt in prompts.items()]
    driven = drive(load, requests, DEMO_WAYS[way])
    assert_answers(smollm2_reference, prompts_by_answer(prompts, driven), driven.answers)
    if DEMO_WAYS[way].speculation:
        assert driven.total("accepted_tokens") > 0


def test_it_knows_what_it_was_taught(smollm2_runner: TorchRunner, smollm2_tokenizer: Tokenizer) -> None:
    """The weights were converted: wrong ones would agree with a reference that reads the same file."""
    message = ChatMessage(role=Role.USER, content="What is the capital of France?")
    prompt = build_prompt(smollm2_tokenizer, GenerateInput(messages=(message,)))
    found = run_all(smollm2_runner, [request(prompt, max_tokens=16)])
    assert "Paris" in smollm2_tokenizer.decode(found["r"])


@pytest.mark.full
def test_bfloat16_answers_almost_the_same(
    smollm2: Path, smollm2_runner: TorchRunner, prompts: dict[str, list[int]]
) -> None:
    rough = runner_for(smollm2, Settings(device="cpu", dtype="bfloat16", kv_pool_tokens=8192, home=HOME))
    requests = [request(prompt, name, max_tokens=4) for name, prompt in prompts.items()]
    exact, close = run_all(smollm2_runner, requests), run_all(rough, requests)
    agreeing = sum(exact[name][0] == close[name][0] for name in prompts)
    assert agreeing >= len(prompts) - 1
