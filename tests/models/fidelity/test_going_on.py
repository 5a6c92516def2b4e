"""A request that another engine goes on with ends as if it had never stopped, wherever that was."""

import codecs
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, FinishReason
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.store.settings import Settings
from tests.models.driving import random_prompts, request
from tests.models.tiny import VOCAB, build, save


def tiny_runner(folder: Path) -> TorchRunner:
    return runner_for(folder, Settings(device="cpu", dtype="float32", kv_pool_tokens=4096, kv_block_tokens=8))


class Syllables:
    """A detokenizer with characters that span tokens, and invalid UTF-8 in between."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        return self._utf8.decode(bytes([0xE0 + token_id % 8, 0x80 + token_id % 64][: 1 + token_id % 2]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def completions(runner: TorchRunner, requests: Iterable[EngineRequest]) -> dict[str, CompletionOutput]:
    """Run requests together in a new engine."""
    engine = LLMEngine(runner, Syllables, EngineConfig(max_slots=24, step_tokens=48), on_deltas=lambda deltas: None)
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
        assert ("".join(done.deltas), done.finish_reason) == (expected.text, expected.finish_reason), name
