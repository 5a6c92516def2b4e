"""Reasoning on a tiny model with random weights, which ends none by itself: budgets, grammars, stop strings."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.reasoning import ReasoningTokens, ReasoningTracker
from headrace.models.engine.requests import CompletionOutput, EngineRequest, FinishReason, Grammar, SamplingParams
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import Settings
from tests.models.tiny import build, save, save_tokenizer
from tests.prompts.reasoning_templates import SWITCHED

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
MARKS = ("<think>", "</think>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(build("llama"), tmp_path_factory.mktemp("reasoning"))
    return save_tokenizer(folder, marks=MARKS, template=SWITCHED)


@pytest.fixture(scope="module")
def runner(folder: Path) -> TorchRunner:
    settings = Settings(device="cpu", dtype="float32", kv_pool_tokens=4096, kv_block_tokens=8)
    return runner_for(folder, settings)


@pytest.fixture(scope="module")
def marks(folder: Path) -> ReasoningTokens:
    tokenizer = load_tokenizer(small_files(folder))
    opening, closing = (tuple(tokenizer.encode(mark, add_special=False)) for mark in MARKS)
    assert len(opening) == len(closing) == 1
    assert tokenizer.reasoning is not None
    return ReasoningTokens(opening, closing)


def run(folder: Path, runner: TorchRunner, requests: Iterable[EngineRequest]) -> list[CompletionOutput]:
    tokenizer = load_tokenizer(small_files(folder))
    engine = LLMEngine(
        runner, lambda: Detokenizer(tokenizer), EngineConfig(max_slots=8, step_tokens=64), on_deltas=lambda deltas: None
    )
    futures = [engine.submit(each) for each in requests]
    engine.start()
    try:
        return [future.result(120) for future in futures]
    finally:
        engine.stop(10)


def asked(name: str, marks: ReasoningTokens, **sampling: object) -> EngineRequest:
    values: dict[str, object] = {"max_tokens": 48, "ignore_eos": True} | sampling
    # A text that repeats, so that there would be drafts.
    return EngineRequest(name, tuple(range(40, 60)) * 3, SamplingParams(**values), reasoning=marks)  # type: ignore[arg-type]


def test_a_budget_ends_the_reasoning_and_a_grammar_begins_after_it(
    folder: Path, runner: TorchRunner, marks: ReasoningTokens
) -> None:
    opened = replace(marks, is_open=True, budget=7)
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    plain, formed, drawn, forced = run(
        folder,
        runner,
        [
            asked("plain", opened),
            asked("formed", opened, ignore_eos=False, grammar=grammar),
            asked("drawn", opened, ignore_eos=False, grammar=grammar, temperature=1.5, seed=3, top_k=5),
            asked("forced", replace(marks, is_forced=True, budget=5), ignore_eos=False, grammar=grammar),
        ],
    )
    assert plain.token_ids.index(marks.closing[0]) == 7
    assert plain.num_reasoning_tokens == 7
    assert plain.num_output_tokens == 48
    for done in (formed, drawn):
        assert done.num_reasoning_tokens == 7
        assert done.finish_reason is FinishReason.STOP
        assert json.loads(done.text.partition("</think>")[2])["ok"] in (True, False)
    assert forced.token_ids[0] == marks.opening[0]
    assert forced.token_ids[6] == marks.closing[0]
    assert forced.text.startswith("<think>")
    assert json.loads(forced.text.partition("</think>")[2])
    assert len(runner.sampler) == 0


def test_a_stop_string_ends_the_answer_and_not_the_reasoning(
    folder: Path, runner: TorchRunner, marks: ReasoningTokens
) -> None:
    opened = replace(marks, is_open=True, budget=20)
    (free,) = run(folder, runner, [asked("free", opened)])
    reasoning, _, answer = free.text.partition("</think>")
    in_both = next(letter for letter in answer if letter in reasoning)
    (stopped,) = run(folder, runner, [asked("stopped", opened, stop=(in_both,))])
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.stop_text == in_both
    assert stopped.text == f"{reasoning}</think>{answer.partition(in_both)[0]}"


@pytest.mark.parametrize("num_kept", [3, 8, 9, 20])
def test_an_attempt_goes_on_in_the_reasoning_and_after_it(
    folder: Path, runner: TorchRunner, marks: ReasoningTokens, num_kept: int
) -> None:
    request = asked("whole", replace(marks, is_open=True, budget=8), temperature=1.0, seed=9, max_tokens=30)
    (whole,) = run(folder, runner, [request])
    shown = [(text, ids) for text, ids in zip(whole.deltas, whole.delta_token_ids, strict=True)]
    kept: list[tuple[str, tuple[int, ...]]] = []
    while sum(len(ids) for _, ids in kept) < num_kept:
        kept.append(shown[len(kept)])
    emitted = tuple(token for _, ids in kept for token in ids)
    again = replace(request, id="again", emitted=emitted, emitted_deltas=tuple(text for text, _ in kept))
    (resumed,) = run(folder, runner, [again])
    assert (resumed.token_ids, resumed.text) == (whole.token_ids, whole.text)
    assert resumed.num_reasoning_tokens == 8


def test_the_tokens_say_where_the_answer_begins() -> None:
    marks = ReasoningTokens((1, 2), (3, 4, 5), direct=(1, 6), budget=4)
    cases: list[tuple[tuple[int, ...], int | None, int, int | None]] = [
        ((), None, 0, None),
        ((1,), None, 0, None),
        ((9,), 0, 0, None),
        ((1, 6), 2, 0, None),
        ((1, 2, 7, 7), None, 2, None),
        ((1, 2, 7, 3, 3, 4, 5), 7, 2, None),
        ((1, 2, 7, 7, 7, 7), None, 4, 3),
        ((1, 2, 7, 7, 7, 7, 3), None, 5, 4),
        ((1, 2, 7, 3, 4), None, 3, 5),
        ((1, 2, 7, 7, 7, 7, 3, 4, 5), 9, 4, None),
    ]
    for output, answer_at, num_tokens, forced in cases:
        tracker = ReasoningTracker(marks)
        tracker.follow((1, 2, 9, 9, 9, 9, 9, 9, 9, 9))  # another output: it begins again
        tracker.follow(output)
        assert (tracker.answer_at, tracker.num_tokens, tracker.forced) == (answer_at, num_tokens, forced), output
