"""The lock files have all that pyproject.toml asks for, with hashes, and an edit that breaks this is found."""

import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
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
    ],
)
def test_a_lock_file_has_nothing_but_pins_and_sha256(line: str) -> None:
    with pytest.raises(locks.LockError, match="pins and hashes alone"):
        locks.pins(f"six==1.17.0 \\\n    --hash=sha256:{'0' * 64}\n{line}\n")


def test_what_runs_here_is_what_is_locked() -> None:
    here = [pin for pin in locks.pins(locks.read_locks()["dev"]) if pin.marker is None or pin.marker.evaluate()]
    assert len(here) > 100
    differing = {pin.name: version(pin.name) for pin in here if pin.version != Version(version(pin.name))}
    assert differing == {}
