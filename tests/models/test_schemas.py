"""Schemas of all common kinds: refused with a reason, or every complete answer validates.

``--full`` runs a thousand, as promised.
"""

import json
from pathlib import Path

import jsonschema_rs
import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import EngineRequest, FinishReason, Grammar, RequestInvalid
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import Settings
from tests.models.driving import random_prompts, request
from tests.models.tiny import VOCAB, build, save, save_tokenizer
from tests.schemas import Schema, a_double, random_schemas


@pytest.fixture
def engine(tmp_path: Path) -> LLMEngine:
    """An engine on a model of random weights, which would never write JSON."""
    folder = save_tokenizer(save(build("llama"), tmp_path))
    settings = Settings(device="cpu", dtype="float32", kv_pool_tokens=8192, kv_block_tokens=8)
    tokenizer = load_tokenizer(small_files(folder))
    config = EngineConfig(max_slots=32, step_tokens=128)
    return LLMEngine(
        runner_for(folder, settings), lambda: Detokenizer(tokenizer), config, on_deltas=lambda deltas: None
    )


def asked(number: int, schema: Schema, prompt: list[int]) -> EngineRequest:
    grammar = Grammar("json_schema", json.dumps(schema))
    return request(prompt, str(number), max_tokens=160, temperature=1.0, seed=number, ignore_eos=False, grammar=grammar)


def test_every_finished_answer_validates(engine: LLMEngine, pytestconfig: pytest.Config) -> None:
    count = 1000 if pytestconfig.getoption("--full") else 200
    prompts = random_prompts(count, longest=20, vocab=VOCAB)
    reasons, futures = [], []
    for number, schema in enumerate(random_schemas(seed=7, count=count)):
        try:
            futures.append((schema, engine.submit(asked(number, schema, prompts[number]))))
        except RequestInvalid as error:
            reasons.append(str(error))
    engine.start()
    try:
        done = [(schema, future.result(600)) for schema, future in futures]
    finally:
        engine.stop(10)
    finished = [(schema, each.text) for schema, each in done if each.finish_reason is FinishReason.STOP]
    for schema, text in finished:
        value = json.loads(text, parse_float=a_double)
        assert jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value), (text, schema)
    assert {each.finish_reason for _, each in done} <= {FinishReason.STOP, FinishReason.LENGTH}
    assert len(finished) > len(done) / 2
    assert len(reasons) < count / 2
    assert all(len(reason) > len("the JSON schema cannot be followed: ") for reason in reasons)
