"""Batching must not change an answer: greedy float32 output equals ``transformers`` ``generate`` token for token."""

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from models.engine.loop import Engine, EngineConfig
from models.engine.requests import Completion, EngineRequest, FinishReason
from models.torch_load import runner_for
from models.torch_runner import TorchRunner
from prompts.prompt import build_prompt
from prompts.tokenizer import Tokenizer
from store.payloads import ChatMessage, GenerateInput, Role
from store.settings import Settings
from tests.models.driving import NoText, count_near_ties, random_prompts, request, run_all
from tests.models.tiny import MODELS, VOCAB, build, save

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


@pytest.mark.parametrize("step_tokens", [512, 40])
def test_the_demo_model_in_a_batch_answers_as_the_reference_alone(
    smollm2_runner: TorchRunner,
    smollm2_reference: PreTrainedModel,
    prompts: dict[str, list[int]],
    step_tokens: int,
    record_property: Callable[[str, object], None],
) -> None:
    requests = [request(prompt, name, max_tokens=24) for name, prompt in prompts.items()]
    found = run_all(smollm2_runner, requests, step_tokens=step_tokens)
    near_ties = count_near_ties(smollm2_reference, prompts, found)
    record_property("near_ties", near_ties)
    assert near_ties <= 1


def test_the_demo_model_alone_answers_as_the_reference(
    smollm2_runner: TorchRunner, smollm2_reference: PreTrainedModel, prompts: dict[str, list[int]]
) -> None:
    some = dict(list(prompts.items())[:3])
    requests = [request(prompt, name, max_tokens=24) for name, prompt in some.items()]
    assert count_near_ties(smollm2_reference, some, run_all(smollm2_runner, requests, max_slots=1)) == 0


def test_the_demo_model_knows_its_colours(smollm2_runner: TorchRunner, smollm2_tokenizer: Tokenizer) -> None:
    """The weights were converted: wrong ones would agree with a reference that reads the same file."""
    message = ChatMessage(role=Role.USER, content="What is the capital of France?")
    prompt = build_prompt(smollm2_tokenizer, GenerateInput(messages=(message,)))
    found = run_all(smollm2_runner, [request(prompt, max_tokens=16)])
    assert "Paris" in smollm2_tokenizer.decode(found["r"])


def test_bfloat16_answers_almost_the_same(
    smollm2: Path, smollm2_runner: TorchRunner, prompts: dict[str, list[int]]
) -> None:
    rough = runner_for(smollm2, Settings(device="cpu", dtype="bfloat16", kv_pool_tokens=8192))
    requests = [request(prompt, name, max_tokens=4) for name, prompt in prompts.items()]
    exact, close = run_all(smollm2_runner, requests), run_all(rough, requests)
    agreeing = sum(exact[name][0] == close[name][0] for name in prompts)
    assert agreeing >= len(prompts) - 1


def tiny_runner(folder: Path, kv_pool_tokens: int = 4096, kv_block_tokens: int = 8) -> TorchRunner:
    settings = Settings(device="cpu", dtype="float32", kv_pool_tokens=kv_pool_tokens, kv_block_tokens=kv_block_tokens)
    return runner_for(folder, settings)


def named(prompts: Sequence[list[int]]) -> dict[str, list[int]]:
    return {f"p{index}": prompt for index, prompt in enumerate(prompts)}


@pytest.mark.parametrize("name", MODELS)
def test_every_family_answers_as_the_reference(name: str, tmp_path: Path) -> None:
    model = build(name)
    runner = tiny_runner(save(model, tmp_path))
    prompts = named(random_prompts(12, longest=90, vocab=VOCAB))
    requests = [request(prompt, request_id, max_tokens=20) for request_id, prompt in prompts.items()]
    together = run_all(runner, requests, step_tokens=32)
    assert count_near_ties(model, prompts, together) == 0
    assert run_all(runner, requests, max_slots=1) == together


def test_preemption_changes_no_token(tmp_path: Path) -> None:
    """The pool holds a third of what the requests need, so that they are evicted and computed again."""
    model = build("llama")
    folder = save(model, tmp_path)
    prompts = named(random_prompts(10, longest=60, vocab=VOCAB, seed=9))
    requests = [request(prompt, request_id, max_tokens=40) for request_id, prompt in prompts.items()]
    found = run_all(tiny_runner(folder, kv_pool_tokens=160), requests, step_tokens=24)
    assert count_near_ties(model, prompts, found) == 0


@pytest.mark.parametrize("kv_pool_tokens", [4096, 240])
def test_a_beginning_that_was_found_changes_no_token(kv_pool_tokens: int, tmp_path: Path) -> None:
    """Chats that begin alike and go on from one another's answers, with room for all and with far too little."""
    model = build("mistral, sliding window")
    runner = tiny_runner(save(model, tmp_path), kv_pool_tokens)
    engine = Engine(runner, NoText, EngineConfig(max_slots=6, step_tokens=24), on_deltas=lambda deltas: None)
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
    found = {name: done.token_ids for name, done in answers.items()}
    assert count_near_ties(model, asked | turns, found) == 0
    assert sum(done.num_cached_tokens > len(system) // 8 * 8 for done in answers.values()) >= len(turns) // 2
    assert (engine.stats().preempted > 0) == (kv_pool_tokens == 240)


@pytest.mark.parametrize("block_tokens", [1, 3, 16, 64])
def test_the_block_size_changes_no_token(block_tokens: int, tmp_path: Path) -> None:
    model = build("mistral, sliding window")
    runner = tiny_runner(save(model, tmp_path), kv_block_tokens=block_tokens)
    prompts = named(random_prompts(6, longest=50, vocab=VOCAB))
    requests = [request(prompt, request_id) for request_id, prompt in prompts.items()]
    assert count_near_ties(model, prompts, run_all(runner, requests, step_tokens=17)) == 0


def test_sharded_weights_are_one_model(tmp_path: Path) -> None:
    model = build("qwen2")
    folder = save(model, tmp_path, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    prompts = named(random_prompts(4, longest=30, vocab=VOCAB))
    requests = [request(prompt, request_id) for request_id, prompt in prompts.items()]
    assert count_near_ties(model, prompts, run_all(tiny_runner(folder), requests)) == 0


class Syllables:
    """A detokenizer whose characters span tokens, with all that is no UTF-8 in between."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        return self._utf8.decode(bytes([0xE0 + token_id % 8, 0x80 + token_id % 64][: 1 + token_id % 2]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def completions(runner: TorchRunner, requests: Iterable[EngineRequest]) -> dict[str, Completion]:
    """Run requests together in a new engine."""
    engine = Engine(runner, Syllables, EngineConfig(max_slots=24, step_tokens=48), on_deltas=lambda deltas: None)
    futures = [engine.submit(each) for each in requests]
    engine.start()
    try:
        return {done.request_id: done for done in (future.result(120) for future in futures)}
    finally:
        engine.stop(30)


VARIANTS: dict[str, dict[str, object]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 11},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "all": {"temperature": 1.2, "seed": 3, "repetition_penalty": 1.1, "frequency_penalty": 0.3},
}


def test_going_on_in_another_engine_changes_nothing_wherever_it_stopped(tmp_path: Path) -> None:
    """Stopped after every number of tokens, by every way of choosing them, and with a stop string on the border."""
    folder = save(build("llama"), tmp_path)
    prompt = random_prompts(4, longest=30, vocab=VOCAB)[3]
    plain = [request(prompt, name, max_tokens=20, **sampling) for name, sampling in VARIANTS.items()]
    texts = {name: done.text for name, done in completions(tiny_runner(folder), plain).items()}
    asked = [*plain]
    for one in plain:
        stop = texts[one.id][6:9]
        asked.append(
            replace(one, id=f"{one.id}, stop", sampling=replace(one.sampling, stop=(stop, texts[one.id] + "x")))
        )
    whole = completions(tiny_runner(folder), asked)
    assert {done.finish_reason for done in whole.values()} == {FinishReason.LENGTH, FinishReason.STOP}

    cut = {
        f"{one.id} at {num}": replace(one, id=f"{one.id} at {num}", pause_after=num)
        for one in asked
        for num in range(1, len(whole[one.id].token_ids))
    }
    first = completions(tiny_runner(folder), cut.values())
    assert {done.finish_reason for done in first.values()} == {FinishReason.HANDED_BACK}
    rest = {
        name: replace(
            cut[name],
            emitted=tuple(chain(*done.delta_token_ids)),
            emitted_deltas=done.deltas,
            pause_after=None,
        )
        for name, done in first.items()
    }
    for name, done in completions(tiny_runner(folder), rest.values()).items():
        expected = whole[name.rpartition(" at ")[0]]
        assert (done.token_ids, done.text) == (expected.token_ids, expected.text), name
        assert (done.deltas, done.finish_reason) == (expected.deltas, expected.finish_reason), name
