"""The lock files have all that pyproject.toml asks for, with hashes, and an edit that breaks this is found."""

import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.version import Version

from supply_chain import locks

Project = dict[str, Any]
Texts = dict[str, str]


def _complaints(project: Project, texts: Texts) -> str:
    return "\n".join(locks.complaints(project, texts))


def test_the_lock_files_hold() -> None:
    locks.check()


def _asks_more(project: Project, texts: Texts) -> None:
    project["project"]["dependencies"].append("left-pad>=1")


def _asks_for_a_tool(project: Project, texts: Texts) -> None:
    project["dependency-groups"]["tools"].append("left-pad>=1")


def _asks_newer(project: Project, texts: Texts) -> None:
    project["project"]["optional-dependencies"]["worker"] = ["safetensors>=99"]


def _builds_with_another(project: Project, texts: Texts) -> None:
    project["build-system"]["requires"] = ["hatchling"]


def _loses_a_pin(project: Project, texts: Texts) -> None:
    texts["control"] = re.sub(r"(?m)^fastapi==.*\n(    --hash.*\n)+", "", texts["control"])


def _loses_hashes(project: Project, texts: Texts) -> None:
    texts["worker"] = re.sub(r"(?m)^(safetensors==\S+) \\\n(    --hash.*\n)+", r"\1\n", texts["worker"])


def _differs(project: Project, texts: Texts) -> None:
    texts["control"] = re.sub(r"(?m)^six==\S+", "six==1.0", texts["control"])


def _torch_strays(project: Project, texts: Texts) -> None:
    texts["worker"] += texts["torch"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_asks_more, "locks/control.txt lacks left-pad"),
        (_asks_for_a_tool, "locks/tools.txt lacks left-pad, which pyproject.toml asks for"),
        (_asks_newer, "pyproject.toml asks for >=99"),
        (_builds_with_another, "locks/dev.txt lacks hatchling"),
        (_loses_a_pin, "locks/control.txt lacks fastapi"),
        (_loses_hashes, "safetensors has no hash"),
        (_differs, "six is 1.0, in dev.txt"),
        (_torch_strays, "torch belongs in torch.txt"),
    ],
)
def test_what_disagrees_is_named(change: Callable[[Project, Texts], None], said: str) -> None:
    project, texts = locks.read_project(), locks.read_locks()
    change(project, texts)
    assert said in _complaints(project, texts)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url somewhere",
        "--extra-index-url somewhere",
        "left-pad @ file:///tmp/left-pad",
        "-e .",
        "left-pad>=1",
        "left-pad==1.0 --hash=md5:00",
        f"--hash=sha256:{'0' * 63}",
    ],
)
def test_a_lock_file_has_nothing_but_pins_and_sha256(line: str) -> None:
    with pytest.raises(locks.LockError, match="pins and hashes alone"):
        locks.pins(f"six==1.17.0 \\\n    --hash=sha256:{'0' * 64}\n{line}\n")


def test_a_pin_has_its_marker_and_the_number_of_its_hashes() -> None:
    digest = f"    --hash=sha256:{'0' * 64}"
    text = f"# note\n\nsix==1.17.0 \\\n{digest} \\\n{digest}\nPy_Win32==3.1 ; sys_platform == 'win32' \\\n{digest}\n"
    assert locks.pins(text) == [
        locks.Pin("six", Version("1.17.0"), None, 2),
        locks.Pin("py-win32", Version("3.1"), Marker("sys_platform == 'win32'"), 1),
    ]


UV = """#!/usr/bin/env python3
import sys
words = sys.argv[1:]
six, torch = "six==1 \\\\\\n    --hash=sha256:0\\n", "torch==2 \\\\\\n    --hash=sha256:1\\n"
open(words[words.index("--output-file") + 1], "w").write("# by uv\\n" + six + torch + "triton==3\\n")
open("asked.txt", "a").write(" ".join(words).replace(sys.argv[-1], "OUT") + "\\n")
"""


def test_torch_is_locked_apart_with_the_versions_of_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = locks.read_project()
    monkeypatch.setattr(locks, "ROOT", tmp_path)
    monkeypatch.setattr(locks, "FOLDER", tmp_path / "locks")
    monkeypatch.setattr(locks, "read_project", lambda: project)
    uv = tmp_path / "uv"
    uv.write_text(UV.replace("/usr/bin/env python3", sys.executable))
    uv.chmod(0o755)
    locks.write(uv, upgrade=False)
    head = "# Written by `make lock`: do not edit.\n"
    six, torch = "six==1 \\\n    --hash=sha256:0\n", "torch==2 \\\n    --hash=sha256:1\ntriton==3\n"
    assert {path.name: path.read_text() for path in (tmp_path / "locks").iterdir()} == {
        "dev.txt": head + six,
        "control.txt": head + six,
        "worker.txt": head + six,
        "local.txt": head + six,
        "torch.txt": head + torch,
        "tools.txt": head + six + torch,
    }
    common = "pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet"
    extras = {name: " ".join(f"--extra {extra}" for extra in given) for name, given in locks.EXTRAS.items()}
    constraint = f"--constraint {tmp_path}/locks/dev.txt"
    assert (tmp_path / "asked.txt").read_text().splitlines() == [
        f"{common} pyproject.toml - {extras['dev']} --output-file OUT",
        f"{common} pyproject.toml - {extras['control']} {constraint} --output-file OUT",
        f"{common} pyproject.toml - {extras['worker']} {constraint} --output-file OUT",
        f"{common} pyproject.toml - {extras['local']} {constraint} --output-file OUT",
        f"{common} --group tools --output-file OUT",
    ]
    uv.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such package')\n")
    with pytest.raises(locks.LockError, match="uv cannot resolve dev: no such package"):
        locks.write(uv, upgrade=False)


def test_what_runs_here_is_what_is_locked() -> None:
    here = [pin for pin in locks.pins(locks.read_locks()["dev"]) if pin.marker is None or pin.marker.evaluate()]
    assert len(here) > 100
    differing = {pin.name: version(pin.name) for pin in here if pin.version != Version(version(pin.name))}
    assert differing == {}
