"""Log probabilities of a prompt's own tokens: in chunks, beside others, after preemption, beside the prefix cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, EngineStats, FinishReason
from headrace.models.loading.torch_load import runner_for
from headrace.store.settings import Settings
from tests.models.driving import NoText, random_prompts, request
from tests.models.tiny import VOCAB, build, save

SETTINGS = Settings(device="cpu", dtype="float32", kv_pool_tokens=4096, kv_block_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("prompt_scores"))


def run(
    folder: Path, waves: list[list[EngineRequest]], settings: Settings = SETTINGS
) -> tuple[dict[str, CompletionOutput], EngineStats]:
    config = EngineConfig(max_slots=8, step_tokens=32)
    engine = LLMEngine(runner_for(folder, settings), NoText, config, on_deltas=lambda deltas: None)
    done: dict[str, CompletionOutput] = {}
    try:
        engine.start()
        for wave in waves:
            futures = [engine.submit(each) for each in wave]
            done |= {str(future.result(60).request_id): future.result(60) for future in futures}
        engine.audit()
        return done, engine.stats()
    finally:
        engine.stop(10)


def check(folder: Path, asked: EngineRequest, found: CompletionOutput) -> None:
    """Compare with the logits of one pass over the whole prompt."""
    expected = runner_for(folder, SETTINGS).score(asked.prompt).log_softmax(-1)[:-1]
    own = expected[torch.arange(len(asked.prompt) - 1), torch.tensor(asked.prompt[1:], dtype=torch.long)]
    assert [each.logprob for each in found.prompt_logprobs] == pytest.approx(own.tolist(), abs=1e-4)
    top = expected.topk(asked.sampling.logprobs or 0).values
    assert [list(each.top_logprobs) for each in found.prompt_logprobs] == [
        pytest.approx(row, abs=1e-4) for row in top.tolist()
    ]


def echoing(prompt: list[int], name: str, **sampling: object) -> EngineRequest:
    return request(prompt, name, **({"echo": True, "logprobs": 2} | sampling))


def test_a_prompt_is_scored_whatever_the_cache_has_and_fills_it_for_others(folder: Path) -> None:
    prompts = random_prompts(5, longest=150, vocab=VOCAB)
    first = [request(prompts[2], "plain", max_tokens=4)]
    scored = [echoing(prompt, str(number), max_tokens=number % 3) for number, prompt in enumerate(prompts)]
    done, stats = run(folder, [first, scored, [request(prompts[2], "after", max_tokens=4)]])
    for asked in scored:
        check(folder, asked, done[str(asked.id)])
        assert (len(done[str(asked.id)].token_ids), done[str(asked.id)].num_cached_tokens) == (
            asked.sampling.max_tokens,
            0,
        )
        assert done[str(asked.id)].finish_reason is FinishReason.LENGTH
    assert done["after"].token_ids == done["plain"].token_ids
    assert done["after"].num_cached_tokens == stats.cached_tokens == 144


def test_preempted_requests_score_their_prompts_once(folder: Path) -> None:
    scored = [echoing(prompt, str(number), max_tokens=40) for number, prompt in enumerate(random_prompts(6, 60, VOCAB))]
    done, stats = run(folder, [scored], SETTINGS.model_copy(update={"kv_pool_tokens": 160}))
    assert stats.preempted > 0
    for asked in scored:
        check(folder, asked, done[str(asked.id)])


def test_without_logprobs_nothing_is_scored_and_only_an_echo_may_have_no_answer(folder: Path) -> None:
    silent = echoing([5, 6, 7], "silent", logprobs=None, max_tokens=0)
    done, _ = run(folder, [[silent]])
    assert (done["silent"].prompt_logprobs, done["silent"].token_ids) == ((), ())
    with pytest.raises(Exception, match="a token to generate"):
        run(folder, [[replace(silent, sampling=replace(silent.sampling, echo=None))]])
