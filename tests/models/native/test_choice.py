"""Whether the kernels run a model, and when they are compiled; nothing is compiled here."""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headrace.models.engine.runner import Interrupted, Row, StepPlan
from headrace.models.families import llama
from headrace.models.families.model_folder import read_json
from headrace.models.families.registry import Architecture, read_architecture
from headrace.models.native import choose
from headrace.models.native.build import BuildFailed, build
from headrace.models.native.choose import native_loader
from headrace.models.native.library import INTERRUPTED, NO_MEMORY, Kernels
from headrace.models.native.llama import load
from headrace.store.settings import Settings
from tests.models import tiny
from tests.models.driving import request
from tests.refusals import Naming
from tests.stand_ins import stand_in

CPU = torch.device("cpu")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    asked: list[Path] = []

    def find(folder: Path) -> Path:
        asked.append(folder)
        return folder

    monkeypatch.setattr(choose, "build", find)
    monkeypatch.setattr(choose, "Kernels", lambda _library: stand_in(isa="tests"))
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


def test_a_folder_that_cannot_be_written_and_a_compiler_that_hangs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.models.native.build.shutil.which", lambda name: "/bin/true")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BuildFailed, match=f" {tmp_path}/file/native: "):
        build(tmp_path / "file" / "native")
    limits: list[float] = []

    def hang(command: Sequence[str], **given: Any) -> Any:
        if "timeout" not in given:  # the version of the compiler
            return SimpleNamespace(stdout="1")
        limits.append(given["timeout"])
        raise subprocess.TimeoutExpired(command, given["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(BuildFailed, match="300 seconds"):
        build(tmp_path / "native")
    assert (limits, [one for one in (tmp_path / "native").iterdir() if one.suffix != ".lock"]) == ([300], [])


def test_a_library_of_other_sources_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"good": 4, "old": 3}

    def opened(path: str) -> Any:
        names = ["isa", "open", "close", "layers", "logits", "linear"]
        functions = {f"headrace_{name}": SimpleNamespace() for name in names}
        version = stand_in_function(versions[Path(path).name])
        return SimpleNamespace(headrace_version=version, **functions)

    monkeypatch.setattr("headrace.models.native.library.ctypes.CDLL", opened)
    Kernels(tmp_path / "good")
    with pytest.raises(OSError, match=rf"^{tmp_path}/old "):
        Kernels(tmp_path / "old")


def stand_in_function(result: int) -> Any:
    """A function to which attributes can be given, as those of ctypes."""

    def function() -> int:
        return result

    return function


@pytest.mark.parametrize(
    ("outcome", "error", "said"),
    [(NO_MEMORY, MemoryError, " 3 tokens"), (INTERRUPTED, Interrupted, ""), (0, None, "")],
)
def test_the_outcome_of_a_pass_is_an_error_or_its_states(
    outcome: int, error: type[Exception] | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    threads: list[int] = []

    def layers(model: Any, *_: object) -> int:
        threads.append(model.threads)
        return outcome

    kernels: Any = stand_in(layers=layers, open=lambda: None, close=lambda space: None)
    folder = tiny.save(tiny.build("llama"), tmp_path)
    config: Any = read_architecture(folder, read_json(folder / "config.json")).config
    loaded: Any = load(kernels, config, folder, num_blocks=1, block_tokens=16, context=16, dtype=torch.float32)
    model, cache, builder = loaded.model, loaded.cache, loaded.batch_builder
    batch = builder.build(StepPlan((Row(request([0, 8, 3]), (0, 8, 3), 0, [0], (), sample=True),)))
    if error is None:
        assert model.forward(batch, cache).shape == (3, -(-config.hidden_size // 64) * 64)
        assert threads == [7]
        return
    with pytest.raises(error) as found:
        model.forward(batch, cache)
    assert said in str(found.value)


def test_kernels_that_cannot_be_built_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_folder: Path) -> Any:
        raise BuildFailed("no compiler")

    monkeypatch.setattr(choose, "build", fail)
    assert native_loader(architecture(), Settings(home=tmp_path), torch.float32, CPU) is None
    assert caplog.messages[-1] == "kernels_unused reason=no compiler"


def test_a_library_is_compiled_once_for_each_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, Sequence[str]]] = []

    def run(command: Sequence[str], **_: Any) -> Any:
        if command[1:] != ["--version"]:
            place = command.index("-o")
            compiled.append((command[0], command[1:place]))
            Path(command[place + 1]).write_bytes(b"")
        return stand_in(stdout="1", returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        "headrace.models.native.build.shutil.which", lambda name: "/bin/true" if name == "c++" else None
    )
    one, again, other = build(tmp_path), build(tmp_path), build(tmp_path, defines=["SMALL"])
    assert one == again != other
    assert one.parent == tmp_path
    assert (one.name[:8], one.suffix, len(one.stem)) == ("kernels-", ".so", len("kernels-") + 16)
    assert [(compiler, flags[-1]) for compiler, flags in compiled] == [
        ("/bin/true", "-Wno-psabi"),
        ("/bin/true", "-DSMALL"),
    ]
    assert {"-ffp-contract=off", "-march=native", "-O3"} <= set(compiled[0][1]), "the bits of a row depend on them"
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda file: "flags : 1" if str(file) == "/proc/cpuinfo" else read(file))
    assert build(tmp_path) != one
    monkeypatch.setattr("headrace.models.native.build.shutil.which", lambda name: None)
    with pytest.raises(BuildFailed) as refused:
        build(tmp_path)
    assert str(refused.value) == Naming("(g++, c++, clang++)")
