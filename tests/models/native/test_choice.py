"""Whether the kernels run a model, and when they are compiled; nothing is compiled here."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.families import llama
from models.families.registry import Architecture
from models.native import build as building
from models.native import choose
from models.native.build import BuildFailed, build
from models.native.choose import native_loader
from store.settings import Settings
from tests.stand_ins import stand_in

CPU = torch.device("cpu")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    asked: list[Path] = []

    def find(folder: Path) -> Any:
        asked.append(folder)
        return SimpleNamespace(isa="tests")

    monkeypatch.setattr(choose, "_kernels", find)
    return asked


def architecture(*, native: str | None = llama.NATIVE, head_dim: int = 64) -> Any:
    return Architecture(stand_in(NATIVE=native), stand_in(head_dim=head_dim))


def test_the_familys_loader_gets_all_that_is_known(kernels: list[Path], tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kv_block_tokens=32)
    found: Any = native_loader(architecture(), settings, torch.int8, CPU)
    assert found.func.__module__ == llama.NATIVE
    assert [getattr(found.args[0], "isa", None), found.args[1].head_dim] == ["tests", 64]
    assert found.keywords == {"block_tokens": 32, "dtype": torch.int8}
    assert kernels == [tmp_path / "native"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"device": torch.device("meta")}, None),
        ({"native_kernels": "off"}, None),
        ({"native": None}, None),
        ({"dtype": torch.float16}, "kernels_unused reason=they do not support torch.float16"),
        ({"head_dim": 48}, "kernels_unused reason=head_dim 48, blocks of 16"),
        ({"kv_block_tokens": 8}, "kernels_unused reason=head_dim 64, blocks of 8"),
    ],
)
def test_other_models_run_on_torch_and_the_log_says_why(
    kernels: list[Path], changes: dict[str, Any], warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(**{name: changes[name] for name in ("native_kernels", "kv_block_tokens") if name in changes})
    model = architecture(**{name: changes[name] for name in ("native", "head_dim") if name in changes})
    with caplog.at_level(logging.WARNING):
        found = native_loader(model, settings, changes.get("dtype", torch.bfloat16), changes.get("device", CPU))
    assert (found, kernels) == (None, [])
    assert caplog.messages == ([] if warning is None else [warning])


def test_kernels_that_cannot_be_built_are_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_folder: Path) -> Any:
        raise BuildFailed("no compiler")

    monkeypatch.setattr(choose, "_kernels", fail)
    assert native_loader(architecture(), Settings(), torch.float32, CPU) is None
    assert caplog.messages[-1] == "kernels_unused reason=no compiler"


def test_a_library_is_compiled_once_for_each_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, Sequence[str]]] = []

    def make(compiler: str, flags: Sequence[str], library: Path) -> None:
        compiled.append((compiler, flags))
        library.write_bytes(b"")

    monkeypatch.setattr(building, "_compile", make)
    monkeypatch.setattr("models.native.build.shutil.which", lambda name: "/bin/true" if name == "c++" else None)
    one, again, other = build(tmp_path), build(tmp_path), build(tmp_path, defines=["SMALL"])
    assert one == again != other
    assert one.parent == tmp_path
    assert (one.name[:8], one.suffix, len(one.stem)) == ("kernels-", ".so", len("kernels-") + 16)
    assert [(compiler, flags[-1]) for compiler, flags in compiled] == [
        ("/bin/true", "-Wno-psabi"),
        ("/bin/true", "-DSMALL"),
    ]
    assert {"-ffp-contract=off", "-march=native", "-O3"} <= set(compiled[0][1]), "the bits of a row depend on them"
    monkeypatch.setattr(building, "_cpu_features", lambda: "another CPU")
    assert build(tmp_path) != one
    monkeypatch.setattr("models.native.build.shutil.which", lambda name: None)
    with pytest.raises(BuildFailed) as refused:
        build(tmp_path)
    assert str(refused.value) == "no C++ compiler (g++, c++, clang++) is on the PATH"
