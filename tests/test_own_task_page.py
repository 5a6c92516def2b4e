"""The blocks of docs/extending.md about a task of your own, as they stand."""

import importlib
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.new_task import new_task
from headrace.tasks import try_out

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text().partition("\n## Headrace itself\n")[0]


def block(language: str, words: str) -> str:
    """The fenced block of a language that contains ``words``."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if words in text]
    return str(found)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package ``mood``, which can be imported."""
    new_task("mood", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("mood_task", "mood_task.runner"):
        sys.modules.pop(name, None)


def declared() -> Any:
    return importlib.import_module("mood_task").TASK


def test_the_model_with_weights_is_made_and_computed(package: Path) -> None:
    (package / "mood_task" / "runner.py").write_text(block("python", "def load"))
    (package / "train.py").write_text(block("python", "save_file"))
    runpy.run_path(str(package / "train.py"))
    texts = [{"text": "fresh bread"}, {"text": "a broken bridge"}]
    found = try_out(declared(), texts, package / "weights")
    assert [one.label for one in found] == ["positive", "negative"]


def test_the_answer_on_the_page_is_that_of_the_package(package: Path) -> None:
    shown = json.loads(block("json", "task.result"))
    body = json.loads(block("sh", "curl").partition("-d '")[2].rpartition("'")[0])
    task = declared()
    (found,) = try_out(task, [body["input"]], package / "model")
    assert found.model_dump() == shown["output"]
    assert task.count_tokens(task.input(**body["input"])) == shown["usage"]["total_tokens"]
    assert body["model"] == task.name
