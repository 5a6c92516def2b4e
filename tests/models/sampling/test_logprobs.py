"""Logprobs are the model's own opinion of each token, whatever the request asks of the choice."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CheckpointMismatch, CompletionOutput, Delta, EngineRequest, RequestInvalid
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import random_prompts, request
from tests.models.tiny import VOCAB, build, save

KINDS: list[dict[str, object]] = [
    {"logprobs": 5},
    {},
    {"logprobs": 0, "temperature": 1.3, "top_p": 0.7, "seed": 4},
    {"logprobs": 20, "repetition_penalty": 1.7, "presence_penalty": 1.0},
    {"logprobs": 1, "temperature": 0.5, "seed": 1, "frequency_penalty": 0.5},
]


class Letters:
    """A detokenizer that shows a text for every second token."""

    def __init__(self) -> None:
        self._held = ""

    def add(self, token_id: int) -> str:
        self._held += chr(0x100 + token_id)
        if len(self._held) < 2:
            return ""
        text, self._held = self._held, ""
        return text

    def flush(self) -> str:
        return self._held


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama")


@pytest.fixture
def runner(model: PreTrainedModel, tmp_path: Path) -> TorchRunner:
    settings = Settings(device="cpu", dtype="float32", kv_pool_tokens=1024, kv_block_tokens=8)
    return runner_for(save(model, tmp_path), settings)


def run(runner: TorchRunner, requests: Iterable[EngineRequest]) -> tuple[dict[str, CompletionOutput], list[Delta]]:
    deltas: list[Delta] = []
    engine = LLMEngine(runner, Letters, EngineConfig(max_slots=8, step_tokens=24), on_deltas=deltas.extend)
    futures = [engine.submit(each) for each in requests]
    engine.start()
    try:
        return {done.request_id: done for done in (future.result(60) for future in futures)}, deltas
    finally:
        engine.stop(10)


def asked() -> list[EngineRequest]:
    prompts = random_prompts(len(KINDS), longest=40, vocab=VOCAB)
    return [
        request(prompt, f"r{n}", max_tokens=13, **kind)
        for n, (prompt, kind) in enumerate(zip(prompts, KINDS, strict=True))
    ]


def test_they_are_the_log_softmax_of_the_reference(model: PreTrainedModel, runner: TorchRunner) -> None:
    done, deltas = run(runner, asked())
    for each in asked():
        found, count = done[each.id], each.sampling.logprobs
        shown = [logprobs for delta in deltas if delta.request_id == each.id for logprobs in delta.logprobs]
        assert shown == list(found.logprobs[: len(shown)])
        if count is None:
            assert found.logprobs == ()
            continue
        assert len(shown) == len(found.logprobs) == len(found.token_ids) == 13
        with torch.inference_mode():
            logits = model(torch.tensor([[*each.prompt, *found.token_ids]])).logits[0]
        expected = logits.log_softmax(-1)[len(each.prompt) - 1 : -1]
        for row, token, logprobs in zip(expected, found.token_ids, found.logprobs, strict=True):
            assert logprobs.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert logprobs.top_ids == tuple(row.topk(count).indices.tolist())
            assert logprobs.top_logprobs == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)


def test_nothing_is_computed_for_those_who_do_not_ask(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("headrace.models.sampling.sampler.logprobs_of")
    done, _ = run(runner, [each for each in asked() if each.sampling.logprobs is None])
    assert [len(each.token_ids) for each in done.values()] == [13]


def test_they_go_on_with_another_attempt(runner: TorchRunner) -> None:
    whole = run(runner, asked())[0]
    first = run(runner, [replace(each, pause_after=5) for each in asked()])[0]
    rest = [
        replace(
            each,
            emitted=tuple(chain(*progress.token_ids)),
            emitted_deltas=progress.deltas,
            emitted_logprobs=progress.logprobs,
        )
        for each in asked()
        for progress in [first[each.id].progress]
    ]
    for name, done in run(runner, rest)[0].items():
        assert done.token_ids == whole[name].token_ids
        # The rows of a prefill are not those of a decode step to the last bit.
        assert [each.top_ids for each in done.logprobs] == [each.top_ids for each in whole[name].logprobs]
        chosen = [each.logprob for each in whole[name].logprobs]
        assert [each.logprob for each in done.logprobs] == pytest.approx(chosen, abs=1e-4)
    engine = LLMEngine(runner, Letters, EngineConfig(), on_deltas=lambda deltas: None)
    with pytest.raises(CheckpointMismatch, match="logprobs"):
        engine.check(replace(rest[0], emitted_logprobs=()))


@pytest.mark.parametrize("count", [-1, 21])
def test_only_so_many_alternatives_can_be_had(runner: TorchRunner, count: int) -> None:
    engine = LLMEngine(runner, Letters, EngineConfig(), on_deltas=lambda deltas: None)
    with pytest.raises(RequestInvalid, match="20"):
        engine.check(request([5], logprobs=count))
