"""Registering a version that an inference server runs."""

import json
from pathlib import Path

import pytest

from headrace.models.catalog import main
from headrace.models.families.model_folder import registered_folder
from headrace.prompts.grammar import grammars_for
from headrace.prompts.tokenizer import ApproximateTokenizer, load_tokenizer, tokenizer_for
from headrace.store.db.database import Database
from headrace.store.errors import ModelLoadError, NotFound
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import read_file, resolve
from headrace.store.registry.versions import list_versions
from headrace.store.settings import Settings
from tests.models import tiny
from tests.refusals import Naming

URL = "http://10.1.2.3:8000"


@pytest.fixture(autouse=True)
def _services(settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)


@pytest.fixture
def tokenizer_folder(smollm2: Path, tmp_path: Path) -> Path:
    """The small files of a model without its weights."""
    folder = tmp_path / "smollm2-tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        (folder / name).write_bytes((smollm2 / name).read_bytes())
    config = json.loads((folder / "config.json").read_bytes())
    # The window of the whole model goes before that of a part.
    (folder / "config.json").write_text(json.dumps(config | {"text_config": {"max_position_embeddings": 64}}))
    return folder


def test_the_operators_server_needs_its_address_and_the_tokenizer(
    db: Database, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["register", "llama", "--engine", "vllm", "--tokenizer", str(tokenizer_folder)]
    assert main([*given, "--url", f"{URL}/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "vllm"
    version = resolve(db, "llama")
    assert (version.runner, version.context_window, version.engine.url) == ("vllm", 8192, URL)
    assert (version.engine.served_model, version.engine.weights_digest) == ("llama", None)
    stored = {name: read_file(db, digest) for name, digest in version.files.items()}
    assert load_tokenizer(stored).eos_token_ids == {2}
    assert main([*given, "--url", "http://elsewhere", "--sampling", "temperature=0.3"]) == 0
    moved = resolve(db, "llama")
    assert (moved.version, moved.engine.url, moved.sampling.temperature) == (1, "http://elsewhere", 0.3)
    assert main([*given, "--url", URL, "--served-model", "base", "--adapter", "poet", "--context-window", "512"]) == 0
    second = resolve(db, "llama@2")
    assert (second.engine.request_model, second.context_window) == ("poet", 512)


def test_a_version_says_what_becomes_of_a_lost_answer(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["register", "behind", "--engine", "openai", "--url", URL, "--context-window", "512"]
    for more, said in ([], Naming("starts anew", "--continues")), (["--continues"], Naming("goes on")):
        assert main([*given, *more]) == 0
        assert capsys.readouterr().err == said
    found = {one.version: one.engine.after_a_loss for one in list_versions(db, "behind")}
    assert found == {1: "starts anew", 2: "goes on"}
    for kind, option in (("vllm", "--continues"), ("openai", "--router")):
        assert main(["register", "other", "--engine", kind, "--url", URL, option]) == 1
        assert capsys.readouterr().err == Naming(option.removeprefix("--"))


def test_a_folder_of_weights_is_what_workers_start_a_server_on(db: Database, tmp_path: Path) -> None:
    folder = tiny.save_tokenizer(tiny.save(tiny.build("llama"), tmp_path / "mine"))
    assert main(["register", "mine", str(folder), "--engine", "vllm"]) == 0
    version = resolve(db, "mine")
    assert version.engine.url is None
    assert registered_folder(version) == folder
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
    with pytest.raises(ModelLoadError, match="new version"):
        registered_folder(version)


def test_a_server_of_chat_completions_needs_no_tokenizer(db: Database) -> None:
    given = ["register", "vendor", "--engine", "openai", "--url", URL, "--served-model", "big"]
    assert main(given) == 1, "nothing says how many tokens the model takes"
    given += ["--context-window", "4096"]
    assert main([*given, "--accepts", "images"]) == 0
    assert resolve(db, "vendor").engine.accepts == ("images",)
    assert main(given) == 0
    assert resolve(db, "vendor@2").engine.accepts is None, "what it accepts is a part of the version"
    version = resolve(db, "vendor")
    assert (version.engine.kind, version.context_window, version.files) == (EngineKind.OPENAI, 4096, {})
    tokenizer = tokenizer_for(version, lambda _digest: b"")
    assert isinstance(tokenizer, ApproximateTokenizer)
    assert [len(tokenizer.encode(text, add_special=True)) for text in ("", "a", "four", "five!")] == [0, 1, 1, 2]
    grammars_for(version, tokenizer, lambda _digest: b"").check("json_schema", '{"type": "integer"}')


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "vllm"], "--url, "),
        (["--engine", "vllm", "--url", URL], "--tokenizer, "),
        (["--engine", "vllm", "--url", URL, "--accepts", "images"], "engine openai"),
        (["--engine", "vllm", "--url", "gpu:8000", "--tokenizer", "."], "http://host:8000"),
        (["--engine", "vllm", "--url", URL, "--tokenizer", "/nowhere"], "/nowhere "),
        (["--engine", "vllm", "--url", URL, "--tokenizer", "/usr"], "/usr: tokenizer.json "),
        (["--engine", "openai"], "address with --url"),
        (["--engine", "vllm", "--url", URL, "--dtype", "float32"], "leave out --dtype"),
        (["fake", "--url", URL, "--batch-invariant"], "--url, --batch-invariant: "),
    ],
)
def test_what_is_missing_is_said_before_anything_is_stored(
    db: Database, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["register", "llama", *arguments]) == 1
    assert said in capsys.readouterr().err
    with pytest.raises(NotFound):
        resolve(db, "llama")
