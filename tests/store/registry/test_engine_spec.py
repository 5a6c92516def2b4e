"""Versions that an inference server runs."""

import re
from typing import Any

import pytest

from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.registry.engine_spec import (
    EXTERNAL_KINDS,
    NATIVE,
    EngineKind,
    EngineSpec,
    engine_digest,
    engine_spec,
)
from headrace.store.registry.models import ModelVersion, list_models, register_version, resolve
from tests.refusals import Naming
from tests.store.making import Query

SPEC = {"kind": "vllm", "url": "http://10.0.0.7:8000", "served_model": "llama", "quantization": "awq"}


def register(db: Database, engine: EngineSpec, **changes: Any) -> ModelVersion:
    values: dict[str, Any] = {
        "model": "served",
        "runner": engine.kind.value,
        "source": "",
        "digest": "d1",
        "dtype": "auto",
        "context_window": 2048,
        "files": {"tokenizer.json": b"{}"},
        "actor": "test",
    }
    return register_version(db, engine=engine, **{**values, **changes})


def test_a_version_keeps_its_engine_and_follows_its_address(db: Database, query: Query) -> None:
    first = register(db, engine_spec(SPEC))
    assert resolve(db, "served") == first
    assert (first.engine.kind, first.task, first.is_fake) == (EngineKind.VLLM, "generate", False)
    moved = register(db, engine_spec(SPEC | {"url": "https://gpu.internal/llama/"}))
    assert (moved.version, moved.engine.url) == (1, "https://gpu.internal/llama")
    assert resolve(db, "served").engine == moved.engine
    assert register(db, engine_spec(SPEC | {"quantization": "fp8"}), digest="d2").version == 2
    register(db, engine_spec(SPEC))
    register(db, engine_spec(SPEC | {"url": "https://gpu.internal/llama/"}))
    assert resolve(db, "served@2").engine.quantization == "fp8", "the other version keeps its engine"
    register_version(
        db,
        model="served",
        runner="torch",
        source="",
        digest="d3",
        dtype="auto",
        context_window=64,
        files={},
        actor="test",
    )
    assert list_models(db)[0].engines == {1: "vllm", 2: "vllm"}
    told = query("SELECT detail FROM audit_log WHERE action = 'model.engine_set' ORDER BY id")
    moves = ["https://gpu.internal/llama", "http://10.0.0.7:8000", "https://gpu.internal/llama"]
    assert told == [{"detail": {"url": url}} for url in moves]


def test_a_runner_and_an_engine_that_do_not_belong_together_are_refused(db: Database) -> None:
    for engine, runner in (
        (EngineSpec(), "vllm"),
        (engine_spec(SPEC), "torch"),
        (engine_spec(SPEC), "sglang"),
    ):
        with pytest.raises(InvalidRequest, match="does not run"):
            register(db, engine, runner=runner)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gpu:8000", "http://host:8000"),
        ("ftp://gpu", "http://host:8000"),
        ("http://", "http://host:8000"),
        ("http://gpu:80000", "out of range"),
        ("http://gpu:0", "1 to 65535"),
        ("http://a b", "http://host:8000"),
        ("http://me:secret@gpu", "HEADRACE_ENGINE_API_KEY"),
        ("http://gpu/v1", "leave out /v1"),
        ("http://gpu/?a=1", "no ?"),
        ("http://gpu/#a", "no #"),
        ("http://me@gpu", "HEADRACE_ENGINE_API_KEY"),
        ("http://gpu/llama/v1/", "leave out /v1"),
        ("http://[::zz]:80", "http://host:8000"),
    ],
)
def test_an_address_that_no_request_could_use_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        engine_spec({"kind": "vllm", "url": url})
    assert said in refused.value.message
    assert refused.value.param == "url"
    assert "secret" not in refused.value.message


def test_a_private_address_is_the_operators_choice() -> None:
    for url in ("http://127.0.0.1:8000", "http://[::1]:8000", "http://169.254.1.1", "http://sidecar"):
        assert engine_spec({"kind": "vllm", "url": url}).url == url


def test_identity_is_all_but_the_address() -> None:
    here, there = engine_spec(SPEC), engine_spec(SPEC | {"url": "http://elsewhere"})
    assert here.identity() == there.identity()
    assert here.identity() != engine_spec(SPEC | {"adapter": "poet"}).identity()
    assert engine_spec(SPEC | {"adapter": "poet"}).request_model == "poet"


def test_images_go_to_servers_of_chat_completions_alone() -> None:
    chat = engine_spec({"kind": "openai", "accepts": ["images"]})
    assert (chat.takes_images, chat.accepts, NATIVE.takes_images) == (True, ("images",), False)
    assert engine_spec({"kind": "vllm", "accepts": []}).accepts is None
    with pytest.raises(InvalidRequest) as refused:
        engine_spec({"kind": "vllm", "accepts": ["images"]})
    assert refused.value.message == Naming("accepts", "engine openai")
    assert refused.value.param == "accepts"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"served_model": ""}, "the engine's served model: String should have at least 1 character"),
        ({"adapter": "a" * 513}, "adapter: .* 512 "),
        ({"revision": "a\nb"}, "the engine's revision: String should match pattern"),
        ({"context_window": 0}, "context window: .* 1"),
        ({"more": 1}, "the engine's more: Extra inputs are not permitted"),
    ],
)
def test_values_that_no_server_has_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        engine_spec({"kind": "vllm", **given})
    assert re.search(said, refused.value.message)
    assert refused.value.param == next(iter(given))


def test_what_an_engine_tells_others_of_itself() -> None:
    spec = engine_spec(SPEC)
    assert (NATIVE.audited, spec.audited) == ({}, {"engine": {**SPEC, "batch_invariant": False}})
    assert (NATIVE.request_model, spec.request_model) == ("", "llama")
    assert (NATIVE.is_external, spec.is_external) == (False, True)
    assert EXTERNAL_KINDS == (EngineKind.VLLM, EngineKind.SGLANG, EngineKind.OPENAI)
    digest = engine_digest(spec, {"a": "1", "b": "2"})
    assert digest == engine_digest(engine_spec(SPEC | {"url": "http://there"}), {"b": "2", "a": "1"})
    assert digest != engine_digest(engine_spec(SPEC | {"batch_invariant": True}), {"a": "1", "b": "2"})
    assert digest != engine_digest(spec, {"a": "1"})
