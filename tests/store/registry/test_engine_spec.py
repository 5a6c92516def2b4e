"""Versions that an inference server runs."""

from typing import Any

import pytest

from store.db.database import Database
from store.errors import InvalidRequest
from store.registry.engine_spec import EngineKind, EngineSpec, engine_spec
from store.registry.models import ModelVersion, list_models, register_version, resolve
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
    told = query("SELECT detail FROM audit_log WHERE action = 'model.engine_set'")
    assert told == [{"detail": {"url": "https://gpu.internal/llama"}}]


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
