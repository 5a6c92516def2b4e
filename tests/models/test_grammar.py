"""Every finished answer follows its grammar with any model, and other requests in the batch are not affected."""

import json
import random
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    CompletionOutput,
    EngineRequest,
    FinishReason,
    Grammar,
    GrammarStuck,
    RequestInvalid,
)
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.models.runners.torch_runner import TorchRunner
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.grammar import Grammars
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import Settings
from tests.models.driving import random_prompts, request, run_all
from tests.models.tiny import VOCAB, build, save, save_tokenizer

SETTINGS = Settings(device="cpu", dtype="float32", kv_pool_tokens=4096, kv_block_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save(build("llama"), tmp_path_factory.mktemp("grammar")))


def run(
    folder: Path, requests: Iterable[EngineRequest], runner: TorchRunner | None = None, *, step_tokens: int = 64
) -> dict[str, CompletionOutput]:
    tokenizer = load_tokenizer(small_files(folder))
    config = EngineConfig(max_slots=16, step_tokens=step_tokens)
    engine = LLMEngine(
        runner or runner_for(folder, SETTINGS), lambda: Detokenizer(tokenizer), config, on_deltas=lambda deltas: None
    )
    futures = [engine.submit(each) for each in requests]
    engine.start()
    try:
        return {done.request_id: done for done in (future.result(120) for future in futures)}
    finally:
        engine.stop(10)


def random_schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    low, size = draw.randrange(3), draw.randrange(1, 4)
    simple: list[dict[str, Any]] = [
        {"type": "integer", "minimum": low - 50, "maximum": 90 * low + size},
        {"type": "string", "maxLength": 2 * low},
        {"type": "string", "pattern": "^[a-c]{1,3}(-[0-9]+)?$", "maxLength": 9},
        {"type": "boolean"},
        {"enum": draw.sample(["red", 'b"l\\ue', "vert 🦆", None, 3.5, True], 3)},
    ]
    if depth == 0 or draw.random() < 0.4:
        return draw.choice(simple)
    inner = random_schema(draw, depth - 1)
    if draw.random() < 0.4:
        return {"type": "array", "items": inner, "minItems": low, "maxItems": low + size}
    properties = {name: random_schema(draw, depth - 1) for name in draw.sample(["a", "name", "größe", 'q"'], size)}
    required = [*properties][:low]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Read the schemas above, slowly and obviously."""
    if "enum" in schema:
        return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in schema["enum"])
    match schema["type"]:
        case "integer":
            is_int = isinstance(value, int) and not isinstance(value, bool)
            return is_int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            is_short = isinstance(value, str) and len(value) <= schema["maxLength"]
            return is_short and re.search(schema.get("pattern", ""), value) is not None
        case "boolean":
            return isinstance(value, bool)
        case "array":
            in_range = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return in_range and all(is_valid(each, schema["items"]) for each in value)
        case _:
            known = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(schema["properties"])
            return known and all(is_valid(each, schema["properties"][name]) for name, each in value.items())


def asked(count: int, seed: int, **sampling: object) -> dict[str, tuple[EngineRequest, dict[str, Any]]]:
    draw = random.Random(seed)
    found = {}
    for n, prompt in enumerate(random_prompts(count, longest=30, vocab=VOCAB, seed=seed)):
        schema = random_schema(draw)
        grammar = Grammar("json_schema", json.dumps(schema))
        values: dict[str, object] = {"max_tokens": 120, "ignore_eos": False, "seed": n, "grammar": grammar}
        found[f"r{n}"] = request(prompt, f"r{n}", **(values | sampling)), schema
    return found


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 9}, {}])
def test_every_finished_answer_is_valid(folder: Path, sampling: dict[str, object]) -> None:
    """A model of random weights that would never write JSON."""
    cases = asked(40, seed=len(sampling), **sampling)
    done = run(folder, [each for each, _ in cases.values()])
    finished = [name for name in cases if done[name].finish_reason is FinishReason.STOP]
    assert len(finished) >= 30
    for name in finished:
        assert is_valid(json.loads(done[name].text), cases[name][1]), (done[name].text, cases[name][1])


def test_other_kinds_too(folder: Path) -> None:
    wanted = {
        "regex": (r"\d{3}-[xy]+z", re.compile(r"\d{3}-[xy]+z")),
        "choice": ('["north", "south-west", "nörd"]', re.compile("north|south-west|nörd")),
        "lark": ('start: "(" start ")" | /[pq]/', re.compile(r"\(*[pq]\)*")),
    }
    requests = [
        request([9, n], f"{kind} {n}", temperature=1.0, seed=n, ignore_eos=False, grammar=Grammar(kind, text))
        for kind, (text, _) in wanted.items()
        for n in range(6)
    ]
    done = run(folder, requests)
    finished = [each for each in done.values() if each.finish_reason is FinishReason.STOP]
    assert len(finished) >= 12
    for each in finished:
        assert wanted[str(each.request_id).split()[0]][1].fullmatch(each.text), each.text


def test_penalties_choose_among_what_the_grammar_allows(folder: Path) -> None:
    grammar = Grammar("regex", "a{20}")
    [done] = run(folder, [request([9], ignore_eos=False, frequency_penalty=2.0, grammar=grammar)]).values()
    assert done.text == "a" * 20


def test_neighbours_are_what_they_are_alone(folder: Path) -> None:
    free = [request(prompt, f"free {n}") for n, prompt in enumerate(random_prompts(6, longest=30, vocab=VOCAB))]
    alone = run_all(runner_for(folder, SETTINGS), free)
    masked = [each for each, _ in asked(8, seed=3).values()]
    together = run(folder, [each for pair in zip(free, masked, strict=False) for each in pair])
    assert {name: together[name].token_ids for name in alone} == alone


def test_preempted_and_continued_it_says_the_same(folder: Path) -> None:
    requests = [each for each, _ in asked(8, seed=5, temperature=1.0).values()]
    whole = run(folder, requests)
    small = SETTINGS.model_copy(update={"kv_pool_tokens": 208})
    preempted = run(folder, requests, runner_for(folder, small), step_tokens=16)
    assert {name: done.token_ids for name, done in preempted.items()} == {
        n: done.token_ids for n, done in whole.items()
    }
    first = run(folder, [replace(each, pause_after=4) for each in requests])
    rest = [
        replace(each, emitted=tuple(chain(*done.delta_token_ids)), emitted_deltas=done.deltas)
        for each in requests
        for done in [first[each.id]]
        if done.finish_reason is FinishReason.HANDED_BACK
    ]
    assert len(rest) >= 4
    for name, done in run(folder, rest).items():
        assert (done.token_ids, done.text) == (whole[name].token_ids, whole[name].text)


def test_what_cannot_be_followed_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    engine = LLMEngine(
        runner_for(folder, SETTINGS),
        lambda: Detokenizer(load_tokenizer(small_files(folder))),
        EngineConfig(),
        on_deltas=lambda deltas: None,
    )
    impossible = Grammar("json_schema", '{"type":"integer","minimum":5,"maximum":3}')
    with pytest.raises(RequestInvalid, match="minimum"):
        engine.submit(request([9], ignore_eos=False, grammar=impossible))
    with pytest.raises(RequestInvalid, match="ignore_eos"):
        engine.check(request([9], ignore_eos=True, grammar=Grammar("regex", "a")))
    bare = runner_for(save(build("llama"), tmp_path), SETTINGS)
    with pytest.raises(RequestInvalid, match=r"tokenizer\.json"):
        bare.check(request([9], ignore_eos=False, grammar=Grammar("regex", "a")))


def test_an_answer_that_is_outside_of_its_grammar_fails_alone(folder: Path) -> None:
    """As one that goes on after an attempt that followed another grammar."""
    tokenizer = load_tokenizer(small_files(folder))
    runner = runner_for(folder, SETTINGS)
    engine = LLMEngine(runner, lambda: Detokenizer(tokenizer), EngineConfig(), on_deltas=lambda deltas: None)
    outside = request([9], ignore_eos=False, grammar=Grammar("regex", "abc"))
    emitted = tuple(tokenizer.encode("xx", add_special=False))
    stuck = engine.submit(replace(outside, emitted=emitted, emitted_deltas=("x", "x")))
    good = engine.submit(replace(outside, id="good"))
    engine.start()
    try:
        with pytest.raises(GrammarStuck):
            stuck.result(60)
        assert good.result(60).text == "abc"
    finally:
        engine.stop(10)
    assert len(runner.sampler) == 0


def test_the_demo_model_too(smollm2: Path, smollm2_runner: TorchRunner) -> None:
    cases = asked(8, seed=21, temperature=1.0, max_tokens=80)
    done = run(smollm2, [each for each, _ in cases.values()], smollm2_runner)
    finished = [name for name in cases if done[name].finish_reason is FinishReason.STOP]
    assert len(finished) >= 5
    for name in finished:
        assert is_valid(json.loads(done[name].text), cases[name][1]), (done[name].text, cases[name][1])


def test_the_engine_compiles_no_grammar_and_a_too_complex_one_fails_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that submits does, and what it made is kept for the request, whatever is thrown out meanwhile."""
    makers: list[str] = []
    make = Grammars.make
    monkeypatch.setattr(
        Grammars, "make", lambda *args: (makers.append(threading.current_thread().name), make(*args))[1]
    )
    monkeypatch.setattr("headrace.prompts.grammar.MOST_BYTES", 0)
    tokenizer = load_tokenizer(small_files(folder))
    config = EngineConfig(max_slots=16, step_tokens=64)
    engine = LLMEngine(
        runner_for(folder, SETTINGS), lambda: Detokenizer(tokenizer), config, on_deltas=lambda deltas: None
    )
    prompts = random_prompts(3, longest=30, vocab=VOCAB, seed=1)
    texts = ["[ab]{3}", ".?" * 3000, "[cd]{3}"]
    asked = [
        request(prompt, f"r{n}", max_tokens=20, ignore_eos=False, grammar=Grammar("regex", text))
        for n, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    first = engine.submit(asked[0])
    with pytest.raises(RequestInvalid, match="too complex"):
        engine.submit(asked[1])
    last = engine.submit(asked[2])
    engine.start()
    try:
        assert [len(future.result(60).text) for future in (first, last)] == [3, 3]
    finally:
        engine.stop(10)
    assert makers == [threading.current_thread().name] * 3
