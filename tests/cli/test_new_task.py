"""``headrace new-task``: what it writes passes its own test, and it writes over nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.new_task import new_task
from headrace.store.errors import InvalidRequest
from headrace.store.settings import child_environment


@pytest.mark.parametrize("files", [False, True])
def test_the_package_passes_its_own_test(tmp_path: Path, *, files: bool) -> None:
    folder = tmp_path / "two_words"
    new_task("two_words", folder, files=files)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(folder)]
    env = child_environment({"PYTHONPATH": str(folder), "PYTEST_ADDOPTS": ""})
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("name", ["Mood", "1st", "a-b", "", "x" * 41, "../x"])
def test_a_name_that_no_task_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="up to 40"):
        new_task(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["generate", "flow"])
def test_the_name_of_a_task_that_is_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"task {name}"):
        new_task(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_it_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(InvalidRequest, match="there already"):
        new_task("mood", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
