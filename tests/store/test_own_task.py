"""Entry points of other packages: what is refused at the start of a process, and what a task becomes."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.store.settings import child_environment
from headrace.store.tasks.own_task import find_own_tasks
from tests.own_tasks import installed

TASK = """
from headrace.tasks import Task
from pydantic import BaseModel

class Input(BaseModel):
    text: str

class Output(BaseModel):
    text: str
    {field}

PLAIN = dict(name="mood", input=Input, output=Output, runner="a.b:load", example={{"text": "x"}})
TASK = Task(**{{**PLAIN, **dict({change})}})
OTHER = 3
"""


@pytest.fixture(autouse=True)
def _no_module_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def write(folder: Path, change: str = "", *, field: str = "", entry: str = "mood = own_mood:TASK") -> None:
    (folder / "own_mood.py").write_text(TASK.format(change=change, field=field))
    installed(folder, entry)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("name='Mood'", "its name is 'Mood'"),
        ("name='embed'", "the name embed is taken"),
        ("runner='a.b'", "`runner` is 'a.b', and must be package.module:function"),
        ("input=dict", "`input` must be a subclass of pydantic.BaseModel"),
        (f"name='{'a' * 41}'", "must be up to 40 of a-z, 0-9 and _, with a letter first"),
        ("most_tokens=0", "`most_tokens` is 0, and must be from 1 to 131072"),
        ("most_tokens=131073", "`most_tokens` is 131073, and must be from 1 to 131072"),
        ("call_timeout_s=0", "`call_timeout_s` is 0, and must be above 0 and at most 3600"),
        ("call_timeout_s=3601", "`call_timeout_s` is 3601, and must be above 0 and at most 3600"),
        ("output=dict", "`output` must be a subclass of pydantic.BaseModel"),
        ("output_texts=('words',)", "`output_texts` names words"),
        ("example={'text': 3}", "`example` does not fit the input: text"),
        ("example={'text': 'x', 'tone': 1}", "`example` does not fit the input: tone"),
    ],
)
def test_a_task_that_cannot_be_used_stops_the_process(tmp_path: Path, change: str, why: str) -> None:
    write(tmp_path, change)
    with pytest.raises(SystemExit) as stopped:
        find_own_tasks({"embed"})
    assert str(stopped.value).startswith(
        "headrace: the task mood = own_mood:TASK of the package own-task cannot be used"
    )
    assert why in str(stopped.value)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("mood = nowhere:TASK", "ModuleNotFoundError: No module named 'nowhere'"),
        ("mood = own_mood:MISSING", "AttributeError"),
        ("mood = own_mood:OTHER", "it is a int, not a headrace.tasks.Task"),
        ("mood = own_mood:TASK\nsecond = own_mood:TASK", "the name mood is taken"),
    ],
)
def test_an_entry_point_without_a_task_stops_the_process(tmp_path: Path, entry: str, why: str) -> None:
    write(tmp_path, entry=entry)
    with pytest.raises(SystemExit, match="cannot be used") as stopped:
        find_own_tasks(())
    assert why in str(stopped.value)


def test_an_output_leaves_the_name_of_the_policy_free(tmp_path: Path) -> None:
    write(tmp_path, field="policy: int = 0")
    with pytest.raises(SystemExit, match="the output has a field `policy`"):
        find_own_tasks(())


def test_a_process_ends_with_one_line(tmp_path: Path) -> None:
    write(tmp_path, "name='Mood'")
    argv = [sys.executable, "-P", "-m", "headrace.workers", "--model", "mood"]
    env = child_environment({"PYTHONPATH": str(tmp_path)})
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "its name is 'Mood'" in done.stderr


def test_a_task_has_its_own_names_in_the_api(tmp_path: Path) -> None:
    write(tmp_path)
    (task,) = find_own_tasks(())
    assert (task.name, task.urls, task.input.__name__) == ("mood", ("/v1/tasks/mood",), "MoodInput")
    request = task.request.model_validate({"task": "mood", "model": "m", "input": {"text": "x"}})
    assert task.payload.model_validate(task.payload(input=request.input).model_dump(mode="json")).input == request.input
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        task.input.model_validate({"text": "x", "tone": 1})


def test_a_task_at_its_bounds_is_described_as_any_other(tmp_path: Path) -> None:
    write(tmp_path, f"name='{'a' * 39}_', most_tokens=131072, call_timeout_s=3600, output_texts=('text',)")
    (task,) = find_own_tasks(())
    name = "a" * 39 + "_"
    url = f"/v1/tasks/{name}"
    assert (task.runner, task.fake_runner, task.urls) == (f"own:{name}", f"own:{name}:without-files", (url,))
    assert task.purpose == f"serves the task {name}: use {url}, or the task {name}"
    assert (task.is_from_outside, task.has_many_texts, task.url_example) == (True, False, {"input": {"text": "x"}})
    body = {"task": name, "model": "mymodel", "input": {"text": "x"}}
    assert task.examples == {name: {"summary": f"The task {name}", "value": body}}
    assert task.request.__name__ == f"{'A' + 'a' * 38}Request"
