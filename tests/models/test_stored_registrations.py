"""What a registration hands to the store, value by value, without a database."""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from headrace.models import adapter_registration, external_registration, hub, own_registration
from headrace.models.adapter_registration import register_adapter, register_adapter_given
from headrace.models.external_registration import add_engine_options, engine_of, register_external
from headrace.models.families.model_folder import all_files_digest, folder_digest
from headrace.models.own_registration import register_folder, register_own
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.registry.engine_spec import EngineKind, EngineSpec, engine_digest
from headrace.store.tasks.registry import OWN_TASKS
from tests.models.loading.test_load import version
from tests.models.loading.test_versions import SMALL
from tests.refusals import Naming

NO_DB: Any = None
URL = "http://gpu:8000"


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments with which versions were registered."""
    found: list[dict[str, Any]] = []

    def register(_db: object, **given: Any) -> Any:
        found.append(given)
        return SimpleNamespace(**given)

    monkeypatch.setattr(external_registration, "register_version", register)
    monkeypatch.setattr(own_registration, "register_version", register)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tiny"
    made.mkdir()
    for name, content in SMALL.items():
        (made / name).write_text(content)
    return made


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    add_engine_options(parser)
    return parser.parse_args(words)


def test_the_options_make_an_engine() -> None:
    assert engine_of(options("big")) is None
    assert engine_of(options("big", "--engine", "vllm", "--url", f"{URL}/")) == EngineSpec(
        kind=EngineKind.VLLM, served_model="big", url=URL
    )
    given = ["--served-model", "m", "--adapter", "a", "--revision", "r", "--quantization", "q"]
    given += ["--context-window", "9", "--batch-invariant", "--url", URL]
    assert engine_of(options("big", "--engine", "sglang", *given)) == EngineSpec(
        kind=EngineKind.SGLANG,
        served_model="m",
        url=URL,
        adapter="a",
        revision="r",
        quantization="q",
        context_window=9,
        batch_invariant=True,
    )
    with pytest.raises(InvalidRequest) as refused:
        engine_of(options("big", *given, "--tokenizer", "x"))
    options_without_a_server = "--url, --served-model, --adapter, --revision, --quantization, --context-window"
    assert str(refused.value) == Naming(f"{options_without_a_server}, --batch-invariant, --tokenizer: ", "--engine")


def test_a_server_of_the_operator_is_stored_with_the_tokenizers_files(
    stored: list[dict[str, Any]], folder: Path
) -> None:
    engine = EngineSpec(kind=EngineKind.VLLM, served_model="m", url=URL)
    register_external(NO_DB, "big", engine, source=None, tokenizer=folder, actor="test")
    files = {name: content.encode() for name, content in SMALL.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert stored == [
        {
            "model": "big",
            "runner": "vllm",
            "source": str(folder),
            "digest": engine_digest(engine, digests),
            "dtype": "auto",
            "context_window": 77,
            "files": files,
            "actor": "test",
            "engine": engine,
        }
    ]


def test_weights_for_a_server_are_stored_with_their_digest(stored: list[dict[str, Any]], folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    engine = EngineSpec(kind=EngineKind.VLLM, served_model="m")
    register_external(NO_DB, "big", engine, source=folder, tokenizer=None, actor="test")
    (found,) = stored
    assert found["engine"] == engine.model_copy(update={"weights_digest": folder_digest(folder)})
    assert (found["source"], found["context_window"]) == (str(folder), 77)


@pytest.mark.parametrize(
    ("config", "given", "window"),
    [
        ({"max_position_embeddings": 5, "n_positions": 6}, None, 5),
        ({"n_positions": 6}, None, 6),
        ({"max_sequence_length": 7}, None, 7),
        ({"seq_length": 8}, None, 8),
        ({"text_config": {"max_position_embeddings": 9}}, None, 9),
        ({"max_position_embeddings": "many", "text_config": {"n_positions": 9}}, None, 9),
        ({"max_position_embeddings": 5}, 4, 4),
        ({"text_config": None}, None, None),
        ({}, None, None),
    ],
)
def test_the_window_is_the_given_one_or_that_of_the_configuration(
    stored: list[dict[str, Any]], folder: Path, config: dict[str, Any], given: int | None, window: int | None
) -> None:
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    engine = EngineSpec(kind=EngineKind.VLLM, served_model="m", url=URL, context_window=given)
    if window is not None:
        register_external(NO_DB, "big", engine, source=None, tokenizer=folder, actor="test")
        assert stored[0]["context_window"] == window
        return
    with pytest.raises(InvalidRequest) as refused:
        register_external(NO_DB, "big", engine, source=None, tokenizer=folder, actor="test")
    assert str(refused.value) == Naming("--context-window")
    assert stored == []


def test_a_chat_server_needs_its_address_and_nothing_else(stored: list[dict[str, Any]]) -> None:
    chat = EngineSpec(kind=EngineKind.OPENAI, served_model="m", url=URL, context_window=5)
    register_external(NO_DB, "big", chat, source=None, tokenizer=None, actor="test")
    assert (stored[0]["source"], stored[0]["files"], stored[0]["runner"]) == (URL, {}, "openai")
    for engine, message in (
        (
            chat.model_copy(update={"url": None}),
            "openai",
        ),
        (
            EngineSpec(kind=EngineKind.VLLM, served_model="m"),
            "a SOURCE folder",
        ),
        (
            EngineSpec(kind=EngineKind.VLLM, served_model="m", url=URL),
            "--tokenizer",
        ),
    ):
        with pytest.raises(InvalidRequest) as refused:
            register_external(NO_DB, "big", engine, source=None, tokenizer=None, actor="test")
        assert message in str(refused.value)
    assert len(stored) == 1


def test_a_task_of_another_package_has_a_folder_or_nothing(stored: list[dict[str, Any]], folder: Path) -> None:
    task = OWN_TASKS[0]
    register_folder(NO_DB, "mine", None, task, actor="test")
    register_folder(NO_DB, "mine", str(folder), task, actor="test")
    same = {"model": "mine", "dtype": "auto", "context_window": task.declared.most_tokens, "actor": "test"}
    assert stored == [
        same | {"runner": task.fake_runner, "source": task.fake_runner, "digest": task.fake_runner},
        same | {"runner": task.runner, "source": str(folder), "digest": all_files_digest(folder)},
    ]


PLAIN = {"name": "x", "source": "folder", "base": "base", "dtype": "auto"}
NOTHING = dict.fromkeys(["engine", "fake", "golden", "sampling", "tokenizer", "url", "served_model", "adapter"])
NOTHING |= dict.fromkeys(
    ["revision", "quantization", "context_window", "batch_invariant", "accepts", "continues", "router"]
)


@pytest.mark.parametrize("given", [{"engine": "vllm"}, {"dtype": "int8"}, {"fake": "fake"}, {"golden": Path("g")}])
def test_an_adapter_has_the_engine_and_the_format_of_its_base(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        register_adapter_given(NO_DB, argparse.Namespace(**(NOTHING | PLAIN | given)), actor="test")
    assert "--base needs SOURCE" in refused.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"engine": EngineSpec(kind=EngineKind.SGLANG, served_model="m")},
            "--engine sglang",
        ),
        ({"runner": "encoder"}, "base@1 has no adapters"),
        ({"runner": "fake"}, "base@1 has no adapters"),
        ({"model": "x"}, "a name of its own: x"),
    ],
)
def test_a_base_that_has_no_adapters_is_refused_before_a_file_is_read(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(version(Path("gone"), "digest"), **({"model": "base"} | changes))
    monkeypatch.setattr(adapter_registration, "resolve", lambda _db, name: base)
    with pytest.raises(InvalidRequest) as refused:
        register_adapter(NO_DB, "x", Path("gone"), "base", actor="test")
    assert refused.value.param == ("name" if "model" in changes else "base")
    assert message in refused.value.message


@pytest.mark.parametrize(
    "given",
    [
        {"sampling": "top_k=1"},
        {"golden": Path("g")},
        {"base": "base"},
        {"fake": "fake"},
        {"engine": "vllm", "url": URL},
        {"dtype": "float32"},
    ],
)
def test_a_task_of_another_package_decides_all_but_its_folder(
    stored: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    words = NOTHING | {"name": "x", "source": None, "base": None, "dtype": "auto", "task": OWN_TASKS[0].name}
    with pytest.raises(ModelLoadError) as refused:
        register_own(NO_DB, argparse.Namespace(**(words | given)), actor="test")
    assert "--task" in refused.value.message
    register_own(NO_DB, argparse.Namespace(**words), actor="me")
    assert [(one["model"], one["actor"]) for one in stored] == [("x", "me")]


class Hub:
    """Stands for the client of the hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sha: str | None, error: Exception | None = None) -> None:
        self.asked: list[Any] = []
        this = self

        class Api:
            def model_info(self, repository: str, *, revision: str | None) -> Any:
                this.asked.append((repository, revision))
                if error is not None:
                    raise error
                return SimpleNamespace(sha=sha)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda *words, **named: self.asked.append((*words, named))
        )


@pytest.mark.parametrize(("asked", "revision"), [("org/a.b-c", None), ("org/a.b-c@v1/x", "v1/x")])
def test_a_model_of_the_hub_is_one_commit_without_pickles(
    asked: str, revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Hub(monkeypatch, "4f2b")
    assert hub.fetch(asked, tmp_path) == tmp_path / "org--a.b-c" / "4f2b"
    assert client.asked == [
        ("org/a.b-c", revision),
        (
            "org/a.b-c",
            {
                "revision": "4f2b",
                "local_dir": tmp_path / "org--a.b-c" / "4f2b",
                "allow_patterns": ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"],
                "ignore_patterns": ["consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*"],
            },
        ),
    ]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("name", None, "'name'"),
        ("a/b/c", None, "'a/b/c'"),
        ("a/b@", None, "'a/b@'"),
        ("a/b", None, "no commit of a/b"),
        (
            "a/b",
            OSError(" no network\nmore"),
            "no network (OSError)",
        ),
        ("a/b", ImportError("no"), "headrace[worker]"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    asked: str, error: Exception | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(monkeypatch, None, error)
    with pytest.raises(ModelLoadError) as refused:
        hub.fetch(asked, tmp_path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
