"""Entry points of other packages: what is refused at the start of a process, and what a task becomes."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.store.settings import child_environment
from headrace.store.tasks.own_task import find_own_tasks
from tests.own_tasks import installed
from tests.refusals import Naming

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
        ("name='Mood'", "'Mood'"),
        ("name='embed'", "embed is taken"),
        ("runner='a.b'", "`runner` is 'a.b'"),
        ("input=dict", "`input` must"),
        (f"name='{'a' * 41}'", "40 of a-z"),
        ("most_tokens=0", "`most_tokens` is 0"),
        ("most_tokens=131073", "`most_tokens` is 131073"),
        ("call_timeout_s=0", "`call_timeout_s` is 0"),
        ("call_timeout_s=3601", "`call_timeout_s` is 3601"),
        ("output=dict", "`output` must"),
        ("output_texts=('words',)", "`output_texts` names words"),
        ("example={'text': 3}", ": text"),
        ("example={'text': 'x', 'tone': 1}", ": tone"),
    ],
)
def test_a_task_that_cannot_be_used_stops_the_process(tmp_path: Path, change: str, why: str) -> None:
    write(tmp_path, change)
    with pytest.raises(SystemExit) as stopped:
        find_own_tasks({"embed"})
    assert str(stopped.value) == Naming("mood = own_mood:TASK", "own-task", why)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("mood = nowhere:TASK", "'nowhere'"),
        ("mood = own_mood:MISSING", "AttributeError"),
        ("mood = own_mood:OTHER", "int, not a headrace.tasks.Task"),
        ("mood = own_mood:TASK\nsecond = own_mood:TASK", "mood is taken"),
    ],
)
def test_an_entry_point_without_a_task_stops_the_process(tmp_path: Path, entry: str, why: str) -> None:
    write(tmp_path, entry=entry)
    with pytest.raises(SystemExit, match=why):
        find_own_tasks(())


def test_an_output_leaves_the_name_of_the_policy_free(tmp_path: Path) -> None:
    write(tmp_path, field="policy: int = 0")
    with pytest.raises(SystemExit, match="`policy`"):
        find_own_tasks(())


def test_a_process_ends_with_one_line(tmp_path: Path) -> None:
    write(tmp_path, "name='Mood'")
    argv = [sys.executable, "-P", "-m", "headrace.workers", "--model", "mood"]
    env = child_environment({"PYTHONPATH": str(tmp_path)})
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "'Mood'" in done.stderr


def test_a_task_has_its_own_names_in_the_api(tmp_path: Path) -> None:
    write(tmp_path)
    (task,) = find_own_tasks(())
    assert (task.name, task.urls, task.input.__name__) == ("mood", ("/v1/tasks/mood",), "MoodInput")
    request = task.request.model_validate({"task": "mood", "model": "m", "input": {"text": "x"}})
    assert task.payload.model_validate(task.payload(input=request.input).model_dump(mode="json")).input == request.input
    with pytest.raises(ValidationError, match="tone"):
        task.input.model_validate({"text": "x", "tone": 1})


def test_a_task_at_its_bounds_is_described_as_any_other(tmp_path: Path) -> None:
    write(tmp_path, f"name='{'a' * 39}_', most_tokens=131072, call_timeout_s=3600, output_texts=('text',)")
    (task,) = find_own_tasks(())
    name = "a" * 39 + "_"
    url = f"/v1/tasks/{name}"
    assert (task.runner, task.fake_runner, task.urls) == (f"own:{name}", f"own:{name}:without-files", (url,))
    assert task.purpose == Naming(name, url)
    assert (task.is_from_outside, task.has_many_texts, task.url_example) == (True, False, {"input": {"text": "x"}})
    body = {"task": name, "model": "mymodel", "input": {"text": "x"}}
    assert task.examples == {name: {"summary": f"The task {name}", "value": body}}
    assert task.request.__name__ == f"{'A' + 'a' * 38}Request"
