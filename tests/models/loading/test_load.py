"""Folders that are missing, damaged, changed or dangerous are refused in one sentence, before anything of them runs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from headrace.models.fakes.fake import FakeRunner
from headrace.models.families.llama_torch import LlamaModel
from headrace.models.families.model_folder import describe, folder_digest
from headrace.models.loading.gguf_convert import convert
from headrace.models.loading.load import load_runner
from headrace.models.runners.torch_runner import TorchRunner
from headrace.models.tensors.precision import resolve_device, resolve_dtype
from headrace.store.errors import ModelLoadError
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.models.driving import request, run_all
from tests.models.tiny import build, save

SETTINGS = Settings(device="cpu", kv_pool_tokens=512)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A sharded tiny model with a tokenizer of its own."""
    folder = save(build("llama"), tmp_path_factory.mktemp("model"), max_shard_size="100KB")
    backend = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in original.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def version(source: Path, digest: str, runner: str = "torch", dtype: str = "auto") -> ModelVersion:
    return ModelVersion("tiny", 1, "generate", runner, str(source), digest, dtype, 512, {}, datetime.now(UTC), None)


def refusal(folder: Path, digest: str | None = None) -> str:
    """Return the error of loading; by default the damage is registered, so that only the loader can find it."""
    with pytest.raises(ModelLoadError) as caught:
        load_runner(version(folder, digest or folder_digest(folder)), SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_folder_runs(folder: Path) -> None:
    found = describe(folder)
    assert found.context_window == 512
    assert set(found.files) == {"config.json", "generation_config.json", "tokenizer.json"}
    runner = load_runner(version(folder, found.digest), SETTINGS)
    assert isinstance(runner, TorchRunner)
    assert (runner.num_blocks, runner.block_tokens, runner.context_window) == (32, 16, 512)
    assert runner.eos_token_ids == {2}
    assert len(run_all(runner, [request([5, 6], max_tokens=3)])["r"]) == 3


def test_the_fake_is_loaded_without_files(folder: Path) -> None:
    runner = load_runner(version(Path("fake"), "fake", runner="fake"), SETTINGS)
    assert isinstance(runner, FakeRunner)
    assert (runner.num_blocks, runner.context_window) == (32, 512)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def shard(folder: Path, index: int = 0) -> Path:
    return sorted(folder.glob("*.safetensors"))[index]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip(shard(folder), -1),
        lambda folder: flip(shard(folder, 2), shard(folder, 2).stat().st_size // 2),
        lambda folder: flip(folder / "config.json", -4),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: flip(folder / "tokenizer.json", 30),
    ],
    ids=["last byte of a shard", "middle of another", "config", "a template appears", "tokenizer"],
)
def test_whatever_changed_since_registration_is_refused(folder: Path, change: Callable[[Path], object]) -> None:
    digest = folder_digest(folder)
    change(folder)
    assert "new version" in refusal(folder, digest)


def test_the_digest_is_of_the_content_not_of_the_place(folder: Path, original: Path) -> None:
    assert folder_digest(folder) == folder_digest(original)
    assert len(folder_digest(folder)) == 64


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} " in refusal(tmp_path / "no", "x")


def test_a_missing_shard_is_named(folder: Path) -> None:
    digest, name = folder_digest(folder), shard(folder, 1).name
    shard(folder, 1).unlink()
    assert f"has no {name}" in refusal(folder, digest)


def test_pickled_weights_are_refused(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "(pytorch_model.bin)" in refusal(folder, "x")
    (folder / "pytorch_model.bin").rename(folder / "model-Q4_1.gguf")
    assert "(model-Q4_1.gguf)" in refusal(folder, "x")


def test_a_pickle_that_calls_itself_safetensors_is_refused(folder: Path) -> None:
    torch.save({"x": torch.zeros(3)}, shard(folder))
    assert f"{shard(folder).name} is not a " in refusal(folder)


def test_a_cut_off_file_is_refused(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-10])
    assert "not a safetensors" in refusal(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", 7])
def test_an_index_may_not_leave_its_folder(folder: Path, name: object) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_bytes())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    assert "no safetensors file" in refusal(folder, "x")


@pytest.mark.parametrize("name", ["tokenizer.json", "model-00001-of-00004.safetensors", "more"])
def test_a_link_may_not_leave_its_folder(folder: Path, tmp_path: Path, name: str) -> None:
    digest, outside = folder_digest(folder), tmp_path / "outside"
    path = folder / name
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    path.symlink_to(outside)
    # The content is the same, so it is the link alone that is refused.
    assert f"{name} is a link" in refusal(folder, digest)
    with pytest.raises(ModelLoadError, match=f"{name} is a link"):
        describe(folder)


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    digest = folder_digest(folder)
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    assert describe(folder).digest == digest


def test_code_beside_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
    (folder / "modeling_trap.py").write_text(trap)
    edit_config(
        folder, model_type="trap", auto_map={"AutoConfig": "modeling_trap.T", "AutoModelForCausalLM": "modeling_trap.T"}
    )
    assert "code that comes" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba"}, "0 of its 3 layers"),
        ({"num_hidden_layers": 4}, "no tensor model.layers.3.input_layernorm.weight"),
        ({"intermediate_size": 97}, "(97, 128)"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    edit_config(folder, **changes)
    assert said in refusal(folder)


def test_a_tokenizer_beyond_the_models_vocabulary_is_not_registered(folder: Path) -> None:
    edit_config(folder, vocab_size=320)
    backend = json.loads((folder / "tokenizer.json").read_bytes())
    backend["model"]["vocab"] |= {f"w{n}": n for n in range(1, 400)}
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(ModelLoadError, match=r"\b400 .*\b320\b"):
        describe(folder)


def test_a_folder_without_tokenizer_or_configuration_is_not_registered(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        describe(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        describe(folder)
    with pytest.raises(ModelLoadError, match="not a folder"):
        describe(folder / "no")


def test_the_versions_dtype_goes_before_the_setting(folder: Path) -> None:
    settings = SETTINGS.model_copy(update={"native_kernels": "off"})
    runner = load_runner(version(folder, folder_digest(folder), dtype="bfloat16"), settings)
    assert isinstance(runner, TorchRunner)
    assert isinstance(runner.model, LlamaModel)
    cache: Any = runner.cache
    keys, _ = cache.pages(0)
    assert keys.dtype == torch.bfloat16


def test_devices_and_number_formats_by_name() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_device("cpu") == cpu
    assert (resolve_dtype("auto", cpu), resolve_dtype("auto", cuda)) == (torch.bfloat16, torch.bfloat16)
    with pytest.raises(ModelLoadError, match="dtype 'int3'"):
        resolve_dtype("int3", cpu)
    for name, said in [("warp", "is not known"), ("cuda:99", "is not there"), ("meta", "is not supported")]:
        with pytest.raises(ModelLoadError, match=said):
            resolve_device(name)


def test_a_gguf_file_without_a_field_is_not_converted(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"has no llama\.attention\.head_count$"):
        convert(tmp_path / "model.gguf", tmp_path, lambda _done, _total: None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
