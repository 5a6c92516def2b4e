"""The workflows for a machine with Docker cannot run here: each of their commands is held against the code."""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
WORKFLOWS: list[dict[str, Any]] = [yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*")]
PYTEST = ".venv/bin/pytest"


def steps(key: str) -> Iterator[Any]:
    for workflow in WORKFLOWS:
        for job in workflow["jobs"].values():
            yield from (step[key] for step in job["steps"] if key in step)


COMMANDS = [shlex.split(command) for command in steps("run")]


def commands(program: str) -> list[list[str]]:
    found = [command[1:] for command in COMMANDS if command[0] == program]
    assert found, f"no workflow has no {program}"
    return found


def test_it_runs_nothing_but_what_is_held_here() -> None:
    assert {command[0] for command in COMMANDS} == {"make", PYTEST, "docker"}
    assert {command[1] for command in COMMANDS if command[0] == "docker"} == {"build", "push", "run"}


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[0] for words in commands("make")} <= targets


def test_pytest_takes_the_options_and_finds_the_folders(request: pytest.FixtureRequest) -> None:
    for words in commands(PYTEST):
        options = [word for word in words if word.startswith("-")]
        assert "--containers" in options
        for option in options:
            request.config.getoption(option)  # raises ValueError for one that does not exist
        assert all((ROOT / word).is_dir() for word in words if word not in options)


def test_images_are_built_from_stages_that_exist_and_run_modules_that_exist() -> None:
    built, pushed = set(), set()
    for words in commands("docker"):
        given = dict(pairwise(words))
        if words[0] == "build":
            text = (ROOT / given["--file"]).read_text()
            assert given.get("--target") in {None, *re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)}
            passed = {given["--build-arg"].partition("=")[0]} if "--build-arg" in given else set()
            assert passed <= set(re.findall(r"^ARG (\S+)", text, re.MULTILINE))
            assert passed or given.get("--target") != "cpu"
            built.add(given["--tag"])
        elif words[0] == "push":
            pushed.add(words[1])
        else:
            assert built & set(words)
            assert importlib.util.find_spec(given["-m"]) is not None
    assert pushed == {tag for tag in built if tag.startswith("$IMAGES/")}


def test_actions_are_those_that_were_looked_at() -> None:
    """A tag can be moved to another commit. The one without a commit is published for use by its branch."""
    moving = {used for used in steps("uses") if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", used)}
    assert moving == {"pypa/gh-action-pypi-publish@release/v1"}


def test_its_python_is_one_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = {given["python-version"] for given in steps("with") if "python-version" in given}
    assert version in SpecifierSet(project["requires-python"])
    assert all(f"PYTHON=python{version}" in words for words in commands("make"))
