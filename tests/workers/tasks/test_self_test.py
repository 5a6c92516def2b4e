"""What a self-test asks of a model, and how answers are compared: pure functions and a fake."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import FinishReason, SampledLogprobs
from headrace.models.fakes.fake import FakeRunner
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.settings import Settings
from headrace.workers.tasks.generate import GenerateModel, sample_seed, seeded
from headrace.workers.tasks.self_test import NUM_TOKENS, PROMPTS, SelfTest, difference, generate_test
from headrace.workers.tasks.task_model import quiet_setup
from tests.processes import WAIT_S
from tests.workers.runs.test_outcome import completion

GOLDEN = GoldenAnswer(prompt="The capital of France is a town on a river, of course", tokens=(65, 66, 67))


def answer(*tokens: int, chances: SampledLogprobs | None = None) -> Any:
    given = tuple(chances or SampledLogprobs(-0.1) for _ in tokens)
    return replace(completion(FinishReason.LENGTH), token_ids=tokens, logprobs=given)


def chances(gap: float, other: int = 66) -> SampledLogprobs:
    return SampledLogprobs(-0.5, (90, other), (-0.5, -0.5 - gap))


@pytest.mark.parametrize(
    ("found", "dtype", "fault"),
    [
        (answer(65, 66, 67), "float32", None),
        (answer(65, 66, 67, 68), "float32", None),
        (answer(65, 66), "float32", "2 tokens"),
        (answer(65, 90, 67, chances=chances(0.0011)), "float32", "90 ('Z')"),
        (answer(65, 90, 99, chances=chances(0.0009)), "float32", None),
        (answer(65, 90, chances=chances(0.29)), "bfloat16", None),
        (answer(65, 90, 67, chances=chances(0.31)), "bfloat16", "90 ('Z')"),
        (answer(65, 90, 67, chances=chances(0.0, other=91)), "bfloat16", "90 ('Z')"),
    ],
)
def test_only_a_near_tie_may_separate_an_answer_from_the_golden_one(found: Any, dtype: str, fault: str | None) -> None:
    said = difference(ByteTokenizer(), GOLDEN, found, dtype=dtype)
    assert (said is None, (fault or "") in (said or "")) == (fault is None, True)


@pytest.mark.parametrize("window", [8192, 8])
def test_without_golden_answers_the_self_test_continues_its_prompts_within_the_window(
    version: ModelVersion, window: int
) -> None:
    model = GenerateModel(version, FakeRunner(context_window=window, num_blocks=64), ByteTokenizer())

    def tested(golden: Sequence[GoldenAnswer]) -> SelfTest:
        engine = model.new_engine(quiet_setup(Settings(), 3))
        found = generate_test(engine, model.tokenizer, golden, context_window=window, dtype="float32")
        assert not engine.is_healthy(WAIT_S), "it is stopped"
        return found

    found = tested(())
    assert [one.prompt for one in found.answers] == list(PROMPTS)
    assert {1 <= len(one.tokens) <= NUM_TOKENS for one in found.answers} == {True}
    assert (found.context_tokens, found.fault) == (min(window, 64 * 16), None)
    assert found.tokens_per_s is not None
    again = tested(found.answers)
    assert (again.answers, again.fault) == (found.answers, None)
    first, *rest = found.answers
    wrong = (GoldenAnswer(prompt=first.prompt, tokens=((first.tokens[0] + 1) % 256,)), *rest)
    assert str(tested(wrong).fault).startswith("token 1 ")


def test_seeds_follow_from_the_job_and_the_number_of_the_prompt() -> None:
    """The numbers are fixed: an attempt by a worker of another release generates the same text."""
    first, second = (seeded(Sampling(), "job_1", number).seed for number in (0, 1))
    assert (first, second) == (4_369_157_549_904_352_661, 8_375_603_352_546_417_035)
    found = [seeded(Sampling(), job_id, number).seed for job_id in ("job_1", "job_2") for number in (0, 1, 2)]
    assert len(set(found)) == 6
    assert all(one is not None and 0 <= one < 2**63 for one in found)
    assert seeded(Sampling(seed=7), "job_1", 3).seed == 7
    assert [sample_seed(7, number) for number in (0, 1, 2)] == [7, 8, 9]
    assert (sample_seed(2**63 - 1, 1), sample_seed(None, 1)) == (0, None)
