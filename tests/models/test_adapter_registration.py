"""What of an adapter is registered, and what is refused before anything is stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.models.catalog import main, register
from headrace.models.families.lora import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import versions
from headrace.store.registry.models import ModelVersion, list_adapters, list_models, resolve, set_sampling
from headrace.store.settings import Settings
from tests.models import tiny
from tests.models.adapters import ATTENTION, adapt

NAME = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter for it."""
    place = tmp_path_factory.mktemp("folders")
    model = tiny.build("llama")
    base = tiny.save_tokenizer(tiny.save(model, place / "base"))
    adapt(model, place / "adapter", ATTENTION, rank=4, seed=1)
    return base, place / "adapter"


@pytest.fixture(autouse=True)
def command_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command finds Postgres and Redis."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)


@pytest.fixture
def base(db: Database, folders: tuple[Path, Path]) -> ModelVersion:
    return register(db, "base", str(folders[0]), "float32", actor="test")


@pytest.fixture
def adapter(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the adapter, to be changed."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / name).write_bytes((folders[1] / name).read_bytes())
    return folder


def option(**changes: object) -> Change:
    """Change the configuration."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps(config | changes))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the tensors."""

    def changed(folder: Path) -> None:
        found = load_file(folder / WEIGHTS_FILE)
        change(found)
        save_file(found, folder / WEIGHTS_FILE)

    return changed


def pickled(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")


def test_an_adapter_is_a_version_with_its_base(
    db: Database, base: ModelVersion, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    set_sampling(db, "base", 1, SamplingDefaults(temperature=0.5), "test")
    assert main(["register", "tone", str(folders[1]), "--base", "base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "tone",
        "version": 1,
        "dtype": "float32",
        "source": str(folders[1].resolve()),
        "engine": "native",
        "base": "base@1",
    }
    assert main(["register", "tone", str(folders[1]), "--base", "base@1"]) == 0
    found = resolve(db, "tone")
    assert (found.version, found.base, found.digest) == (1, "base@1", adapter_digest(folders[1]))
    assert (found.files, found.context_window, found.dtype) == (base.files, base.context_window, base.dtype)
    assert found.sampling.temperature == 0.5
    assert list_adapters(db, base) == [found]
    with db.begin() as connection:
        actors = connection.exec_driver_sql(
            "SELECT DISTINCT actor FROM audit_log WHERE starts_with(resource, 'tone')"
        ).scalars()
        assert actors.all() == ["headrace.models.catalog"]
    assert {one.name: one.bases for one in list_models(db)} == {"base": {}, "tone": {1: "base@1"}}
    set_sampling(db, "tone", 1, SamplingDefaults(top_k=3), "test")
    assert main(["register", "tone", str(folders[1]), "--base", "base"]) == 0
    assert resolve(db, "tone").sampling.given() == {"top_k": 3}, "the adapter's own defaults stay"


def test_a_base_stays_while_it_has_adapters(db: Database, base: ModelVersion, folders: tuple[Path, Path]) -> None:
    assert main(["register", "tone", str(folders[1]), "--base", "base"]) == 0
    register(db, "base", str(folders[0]), "bfloat16", actor="test")
    register(db, "tone", "fake", "auto", actor="test")
    for name in ("base", "tone"):
        versions.set_alias(db, name, "default", 2, "test", is_early=True)
    with pytest.raises(Conflict, match="tone@1: retire"):
        versions.retire(db, "base", 1, "test")
    versions.retire(db, "tone", 1, "test")
    versions.retire(db, "base", 1, "test")
    with pytest.raises(Conflict, match="base@1"):
        versions.revive(db, "tone", 1, "test")
    with pytest.raises(NotFound):
        resolve(db, "tone@1")
    with pytest.raises(Conflict, match="tone@1: delete"):
        versions.delete_version(db, "base", 1, "test")
    versions.delete_version(db, "tone", 1, "test")
    versions.delete_version(db, "base", 1, "test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (option(peft_type="IA3"), "peft_type 'IA3'"),
        (option(use_dora=True), "DoRA"),
        (option(modules_to_save=["lm_head"]), "(modules_to_save)"),
        (option(bias="all"), "bias 'all'"),
        (option(init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
        (option(a_new_option=3), "a_new_option"),
        (option(r=8), "ask for (8, 128)"),
        (option(r=0), "1 to 512"),
        (option(lora_alpha="much"), "lora_alpha"),
        (tensors(lambda found: found.pop(NAME)), "only lora_B"),
        (tensors(lambda found: found[NAME].view(-1)[5].fill_(float("nan"))), "NaN or infinite"),
        (tensors(lambda found: found.update({NAME: torch.ones(4, 64)})), "(4, 64)"),
        (
            tensors(lambda found: found.update({NAME.replace(".1.", ".7."): torch.ones(4, 128)})),
            "3 layers",
        ),
        (tensors(lambda found: found.update({NAME.replace("lora_A", "lora_M"): torch.ones(4)})), "not a lora_A"),
        (tensors(lambda found: found.clear()), "no tensors"),
        (pickled, "pickled weights (adapter_model.bin)"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"no"), "not a safetensors"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), "adapter_config.json"),
    ],
)
@pytest.mark.usefixtures("base")
def test_what_would_not_be_computed_as_peft_does_is_refused(
    db: Database, adapter: Path, change: Change, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(adapter)
    assert main(["register", "tone", str(adapter), "--base", "base"]) == 1
    assert said in capsys.readouterr().err
    assert [one.name for one in list_models(db)] == ["base"]


@pytest.mark.usefixtures("base")
def test_a_base_without_adapters_is_refused(
    db: Database, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    register(db, "fake", "fake", "auto", actor="test")
    assert main(["register", "tone", str(folders[1]), "--base", "base"]) == 0
    for name, arguments, said in (
        ("other", ["--base", "fake"], "fake@1"),
        ("other", ["--base", "tone"], "--base base@1"),
        ("other", ["--base", "nobody"], "no model 'nobody'"),
        ("base", ["--base", "base"], "a name of its own"),
        ("other", ["--base", "base", "--dtype", "float32"], "--dtype, --golden"),
    ):
        assert main(["register", name, str(folders[1]), *arguments]) == 1
        assert said in capsys.readouterr().err
