"""What a version is loaded as: models without weights, number formats, faults, the files that count."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.models.engine.requests import EncodeRow, EngineRequest, SamplingParams
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.fakes.fake import FakeRunner
from headrace.models.fakes.fake_encoder import FakeEncoder
from headrace.models.fakes.faults import FaultyEncoder
from headrace.models.families import model_folder
from headrace.models.families.lora import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from headrace.models.families.model_folder import all_files_digest, folder_digest, weight_files
from headrace.models.loading import adapters, load
from headrace.models.runners.torch_runner import TorchRunner
from headrace.models.tensors.precision import activation_dtype, resolve_device, resolve_dtype
from headrace.store import failpoints
from headrace.store.errors import CannotLoadHere, ModelLoadError
from headrace.store.settings import Settings
from tests.models.loading.test_load import version
from tests.refusals import Naming
from tests.stand_ins import stand_in

SMALL = {
    "config.json": '{"model_type": "llama", "vocab_size": 3, "hidden_size": 4, "intermediate_size": 4, '
    '"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 77}',
    "tokenizer.json": '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "unk_token": "a", '
    '"vocab": {"a": 0, "b": 1, "c": 2}}}',
}
"""The small files of a model of three tokens."""

SETTINGS = Settings(device="cpu", fake_step_ms=250, kv_pool_tokens=512)


def test_a_generating_fake_takes_the_time_and_the_pool_that_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.model_copy(update={"kv_block_tokens": 8})
    runner: Any = load.load_runner(replace(version(Path("fake"), "fake"), runner="fake"), settings)
    slept: list[float] = []
    monkeypatch.setattr(runner, "sleep", slept.append)
    request = EngineRequest("r", (1,), SamplingParams(2))
    runner.run(StepPlan((Row(request, (1,), 0, [0], (), sample=True),)))
    assert (slept, runner.num_blocks, runner.block_tokens, runner.context_window) == ([0.25], 64, 8, 512)


def test_a_version_with_weights_is_loaded_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = version(tmp_path, "digest", dtype="bfloat16")
    monkeypatch.setattr("headrace.models.loading.torch_load.load_torch", lambda *given: given)
    assert load.load_runner(one, SETTINGS) == (one, SETTINGS)


def test_a_model_without_weights_runs_no_adapters() -> None:
    fake = replace(version(Path("fake"), "fake"), runner="fake")
    assert load.adapter_loader(load.load_runner(fake, SETTINGS), fake) is None


@pytest.mark.parametrize(
    ("kind", "names", "is_loaded"),
    [(TorchRunner, ["mlp.up_proj"], True), (TorchRunner, [], False), (FakeRunner, ["mlp.up_proj"], False)],
)
def test_adapters_are_for_torch_and_for_families_that_have_them(
    kind: type[Any], names: list[str], monkeypatch: pytest.MonkeyPatch, *, is_loaded: bool
) -> None:
    family = stand_in(adaptable=lambda config: dict.fromkeys(names, (1, 1)) if config == "its own" else {})
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        adapters,
        "base_architecture",
        lambda folder: asked.append((folder,)) or stand_in(family=family, config="its own"),
    )
    monkeypatch.setattr(adapters, "load_adapter", lambda *words, **named: asked.append((*words, named)))
    runner = kind.__new__(kind)
    found = load.adapter_loader(runner, version(Path("base"), "b"))
    assert (found is not None, asked) == (is_loaded, [(Path("base"),)])
    if found is not None:
        found(version(Path("adapter"), "a"))
        assert asked[1:] == [(runner, Path("adapter"), {"base": Path("base"), "digest": "a"})]


def test_an_adapter_has_the_files_that_were_registered(tmp_path: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / name).write_text(name)
    one = version(tmp_path, adapter_digest(tmp_path))
    load.check_adapter(one)
    (tmp_path / WEIGHTS_FILE).write_text("others")
    with pytest.raises(ModelLoadError) as refused:
        load.check_adapter(one)
    assert str(refused.value) == Naming("adapter", f"{tmp_path} ", "new version")


@pytest.mark.parametrize(
    ("given", "setting", "task", "expected"),
    [
        ("auto", "auto", "generate", "bfloat16"),
        ("auto", "float32", "generate", "float32"),
        ("int8", "float32", "generate", "int8"),
        ("auto", "auto", "embed", "float32"),
        ("auto", "bfloat16", "embed", "bfloat16"),
        ("bfloat16", "auto", "embed", "bfloat16"),
    ],
)
def test_the_number_format_is_the_versions_or_the_settings(given: str, setting: str, task: str, expected: str) -> None:
    settings = SETTINGS.model_copy(update={"dtype": setting})
    one = replace(version(Path("m"), "x", dtype=given), task=task)
    assert load.number_format(one, settings) == expected


@pytest.mark.parametrize(("before", "after"), [(None, "1000"), ("7", "7")])
def test_openmp_spins_briefly_unless_the_operator_says_otherwise(
    before: str | None, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if before is None else {"GOMP_SPINCOUNT": before}
    monkeypatch.setattr("headrace.models.loading.load.os.environ", environment)
    with pytest.raises(CannotLoadHere, match=f"tiny@1: {tmp_path / 'no'} is not"):
        load.checked_folder(version(tmp_path / "no", "x"))
    assert environment == {"GOMP_SPINCOUNT": after}


def test_an_encoder_has_faults_only_if_the_settings_say_so() -> None:
    encoder = FakeEncoder()
    assert load.with_encoder_faults(encoder, Settings(), str) is encoder
    settings = Settings(environment="test", model_faults="nan:rotten", failpoints="batch.midway=raise@2")
    failpoints.install(settings.failpoints)
    try:
        faulty = load.with_encoder_faults(encoder, settings, lambda tokens: bytes(tokens).decode())
        assert isinstance(faulty, FaultyEncoder)
        assert faulty.context_window == encoder.context_window
        good, bad = (EncodeRow("r", tuple(text), None) for text in (b"good", b"a rotten egg"))
        assert faulty.run([good, bad]) == [*encoder.run([good]), None]
        with pytest.raises(failpoints.FailpointRaised):
            faulty.run([good])
    finally:
        failpoints.install("")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_of_every_name_are_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights{suffix}").write_bytes(b"")
    with pytest.raises(ModelLoadError) as refused:
        weight_files(tmp_path)
    assert str(refused.value) == Naming(f"{tmp_path} ", f"pickled weights (weights{suffix})", "safetensors")


def test_the_digest_of_a_folder_counts_its_index_weights_and_small_files(tmp_path: Path) -> None:
    files = {
        "config.json": '{"model_type": "llama"}',
        "tokenizer.json": "{}",
        "one.safetensors": "1",
        "two.safetensors": "2",
        "model.safetensors.index.json": '{"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}',
    }
    for name, content in {**files, "README.md": "read"}.items():
        (tmp_path / name).write_text(content)
    assert [path.name for path in weight_files(tmp_path)] == ["one.safetensors", "two.safetensors"]
    digests = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in files.items()}
    assert folder_digest(tmp_path) == hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelLoadError, match="weight_map"):
        weight_files(tmp_path)


def test_the_digest_of_any_files_leaves_out_what_python_compiles(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as refused:
        all_files_digest(tmp_path)
    assert str(refused.value) == Naming(f"{tmp_path} has no files")
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "run.py").write_text("1")
    (tmp_path / "table").write_text("2")
    digests = {"code/run.py": hashlib.sha256(b"1").hexdigest(), "table": hashlib.sha256(b"2").hexdigest()}
    expected = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    (tmp_path / "code" / "__pycache__" / "run.pyc").write_bytes(b"3")
    assert all_files_digest(tmp_path) == expected
    (tmp_path / "code" / "more").write_text("4")
    assert all_files_digest(tmp_path) != expected
    (tmp_path / "code" / "link").symlink_to(sys.executable)
    with pytest.raises(ModelLoadError, match="is a link"):
        all_files_digest(tmp_path)


def test_a_vocabulary_may_be_as_large_as_the_models_and_no_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "folder_digest", lambda folder: "digest")
    for name, content in SMALL.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "model.safetensors").touch()
    found = model_folder.describe(tmp_path)
    assert (found.runner, found.digest, found.context_window) == ("torch", "digest", 77)
    assert sorted(found.files) == ["config.json", "tokenizer.json"]
    (tmp_path / "config.json").write_text(SMALL["config.json"].replace('"vocab_size": 3', '"vocab_size": 2'))
    with pytest.raises(ModelLoadError) as refused:
        model_folder.describe(tmp_path)
    assert str(refused.value) == Naming(f"{tmp_path}: ", " 3 ", " 2")


def test_devices_and_formats_say_what_is_wrong_with_them() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    names = {name: resolve_dtype(name, cpu) for name in ("float32", "bfloat16", "float16", "int8")}
    assert names == {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "int8": torch.int8,
    }
    assert [activation_dtype(each) for each in names.values()] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.bfloat16,
    ]
    with pytest.raises(CannotLoadHere) as refused:
        resolve_dtype("int8", cuda)
    assert str(refused.value) == Naming("int8 ", "use bfloat16")
    with pytest.raises(CannotLoadHere) as refused:
        resolve_device("meta")
    assert str(refused.value) == Naming("'meta'", "auto, cpu, cuda or cuda:N")


@pytest.mark.parametrize(
    ("name", "count", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:2", 2, Naming("'cuda:2'", " 2 ")),
        ("cuda", 0, Naming("'cuda'", " 0 ")),
    ],
)
def test_a_device_is_one_of_this_machine(
    name: str, count: int, found: str | Naming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if isinstance(found, str):
        assert str(resolve_device(name)) == found
        return
    with pytest.raises(CannotLoadHere) as refused:
        resolve_device(name)
    assert str(refused.value) == found
