"""Chats with shared prefixes that continue each other's answers: a cache hit changes no token."""

from pathlib import Path

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.loading.torch_load import runner_for
from headrace.store.settings import Settings
from tests.models.driving import NoText, random_prompts, request
from tests.models.fidelity.conftest import AssertAnswers
from tests.models.tiny import VOCAB, build, save


@pytest.mark.parametrize("kv_pool_tokens", [4096, 240])
def test_a_beginning_that_was_found_changes_no_token(
    kv_pool_tokens: int, tmp_path: Path, assert_answers: AssertAnswers
) -> None:
    """With room for all and with far too little."""
    model = build("mistral, sliding window")
    settings = Settings(device="cpu", dtype="float32", kv_pool_tokens=kv_pool_tokens, kv_block_tokens=8)
    runner = runner_for(save(model, tmp_path), settings)
    engine = LLMEngine(runner, NoText, EngineConfig(max_slots=6, step_tokens=24), on_deltas=lambda deltas: None)
    system, *questions = random_prompts(8, longest=40, vocab=VOCAB, seed=4)[2:]
    asked = {f"chat {n}": [*system, *question] for n, question in enumerate(questions)}
    engine.start()
    try:
        first = [engine.submit(request(prompt, name)) for name, prompt in asked.items()]
        answers = {done.request_id: done for done in (future.result(120) for future in first)}
        turns = {f"{name}, on": [*asked[name], *answers[name].token_ids, 7, 8] for name in asked}
        second = [engine.submit(request(prompt, name)) for name, prompt in turns.items()]
        answers |= {done.request_id: done for done in (future.result(120) for future in second)}
    finally:
        engine.stop(30)
    assert_answers(model, asked | turns, {name: done.token_ids for name, done in answers.items()})
    assert sum(done.num_cached_tokens > len(system) // 8 * 8 for done in answers.values()) >= len(turns) // 2
    assert (engine.stats().preempted > 0) == (kv_pool_tokens == 240)
