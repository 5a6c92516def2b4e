"""Versions that are made of the body of a request."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.producer_api.jobs.version_registration import VersionRequest, new_version
from headrace.store.errors import Conflict, InvalidRequest
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion
from tests.producer_api.jobs.start_time import START
from tests.refusals import Naming

SOURCE = ModelVersion(
    "tiny", 1, "generate", "torch", "/models", "0" * 64, "float32", 512, {"tokenizer.json": "1"}, START, None
)
SERVER = {"kind": "vllm", "url": "http://vllm:8000"}
OWN = {
    "model": "tiny",
    "runner": "torch",
    "source": "/models",
    "digest": "0" * 64,
    "context_window": 512,
    "kept_files": {"tokenizer.json": "1"},
}


def body(**given: Any) -> VersionRequest:
    return VersionRequest.model_validate(given)


def test_a_version_has_the_files_of_another() -> None:
    files = {"files_of": "tiny@1"}
    made = new_version("tiny", body(**files, dtype="int8"), SOURCE)
    assert made == OWN | {"dtype": "int8", "golden": [], "quantized_from": "tiny@1"}
    assert new_version("other", body(**files), SOURCE) == OWN | {
        "model": "other",
        "dtype": "auto",
        "golden": [],
        "quantized_from": None,
    }
    shared = replace(SOURCE, version=5, base_model="tiny", base_version=4)
    assert new_version("tiny", body(**files, dtype="int8"), shared)["quantized_from"] == "tiny@4"
    alone = OWN | {"dtype": "float32", "engine": SOURCE.engine, "quantized_from": "tiny@9"}
    source = replace(SOURCE, quantized_from="tiny@9")
    assert new_version("tiny", body(**files, prompt=None), source) == alone
    for differs in ({"dtype": "auto"}, {"golden": []}):
        assert "golden" in new_version("tiny", body(**files, prompt=None, **differs), source)
    assert "golden" in new_version("other", body(**files, prompt=None), source)


def test_a_version_is_run_by_a_server() -> None:
    made = new_version("tiny", body(files_of="tiny@1", engine=SERVER), SOURCE)
    digest = made.pop("digest")
    engine = EngineSpec(kind=EngineKind.VLLM, url="http://vllm:8000", served_model="tiny")
    served = OWN | {"runner": "vllm", "source": "http://vllm:8000", "dtype": "auto", "engine": engine}
    assert made == {name: value for name, value in served.items() if name != "digest"}
    assert digest != SOURCE.digest
    named = new_version("tiny", body(files_of="tiny@1", engine=SERVER | {"served_model": "up"}), SOURCE)
    assert named["engine"].served_model == "up"
    chat = new_version("chat", body(engine=SERVER | {"kind": "openai", "context_window": 64}), None)
    assert (chat["context_window"], chat["kept_files"], chat["runner"]) == (64, {}, "openai")
    smaller = new_version("tiny", body(files_of="tiny@1", engine=SERVER | {"context_window": 64}), SOURCE)
    assert smaller["context_window"] == 64


@pytest.mark.parametrize(
    ("given", "source", "expected"),
    [
        ({}, None, (InvalidRequest, "headrace register", "files_of")),
        (
            {"prompt": {"id": "p"}},
            replace(SOURCE, task="embed"),
            (InvalidRequest, "template", "prompt"),
        ),
        (
            {"golden": [{"prompt": "a", "tokens": [1]}]},
            replace(SOURCE, task="embed"),
            (InvalidRequest, "golden", "golden"),
        ),
        (
            {"prompt": None},
            replace(SOURCE, base_model="other", base_version=1),
            (Conflict, "adapter", "files_of"),
        ),
        *(
            (
                {},
                replace(SOURCE, **changes),
                (
                    Conflict,
                    "weights",
                    "files_of",
                ),
            )
            for changes in (
                {"runner": "fake"},
                {"engine": EngineSpec(kind=EngineKind.VLLM, url="http://vllm:8000", served_model="x")},
                {"base_model": "other", "base_version": 1},
            )
        ),
        *(
            (
                {"engine": SERVER} | changes,
                SOURCE,
                (
                    InvalidRequest,
                    "dtype and golden",
                    None,
                ),
            )
            for changes in ({"dtype": "int8"}, {"golden": [{"prompt": "a", "tokens": [1]}]})
        ),
        (
            {"engine": SERVER},
            replace(SOURCE, files={}),
            (InvalidRequest, "tokenizer", "files_of"),
        ),
        (
            {"engine": SERVER | {"kind": "openai"}},
            None,
            (InvalidRequest, "engine.context_window", "engine"),
        ),
    ],
)
def test_a_version_that_cannot_be_made_is_refused(
    given: dict[str, Any], source: ModelVersion | None, expected: Any
) -> None:
    with pytest.raises((InvalidRequest, Conflict)) as caught:
        new_version("tiny", body(**given), source)
    kind, named, param = expected
    assert (type(caught.value), caught.value.message, caught.value.param) == (kind, Naming(named), param)
