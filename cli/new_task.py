"""``headrace new-task NAME``: writes a task of your own with a model and a test, as a package or as a feature."""

import re
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.render import say
from headrace.store.errors import InvalidRequest
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.tasks.registry import TASKS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "headrace-task-DASHED"
version = "0.1.0"
requires-python = ">=3.11"
# What the runner needs beside Headrace. Headrace itself is on no index: install this package into its environment.
dependencies = []

# Every process of Headrace finds the task by this entry point.
[project.entry-points."headrace.tasks"]
NAME = "NAME_task:TASK"

[tool.setuptools]
packages = ["NAME_task"]
"""

_TASK = '''\
"""The task NAME: its input, its output, and what Headrace must know of it. No torch here: the API imports this."""

from pydantic import BaseModel, Field

from headrace.tasks import Task


class Input(BaseModel):
    """A text."""

    text: str = Field(min_length=1, max_length=100_000, description="the text to judge")


class Output(BaseModel):
    """What the text sounds like."""

    label: str = Field(description="`positive`, `negative` or `neutral`")
    score: float = Field(description="from -1 to 1")


TASK = Task(
    name="NAME",
    input=Input,
    output=Output,
    runner="NAME_task.runner:load",
    example={"text": "what a lovely mill"},
    count_tokens=lambda given: 1 + len(given.text) // 4,  # the cost of an input, which limits and usage count
    most_tokens=8192,  # an input that costs more is refused
    output_texts=(),  # the fields of the output with text for the tenant's policy to check: a label is none
    summary="Say whether a text sounds positive or negative",
)
'''

_RUNNER = '''\
"""The runner of the task NAME: only workers import it."""

import json
from collections.abc import Callable
from pathlib import Path

from NAME_task import Input, Output


def load(folder: Path | None) -> Callable[[list[Input]], list[Output]]:
    """Return the runner for the folder of a model version."""
    weights = json.loads((folder / "words.json").read_text()) if folder else {"lovely": 1, "stale": -1}

    def run(batch: list[Input]) -> list[Output]:
        """Batch in, batch out: one output for each input, in order."""
        found = [[weights[word] for word in one.text.lower().split() if word in weights] for one in batch]
        scores = [sum(values) / max(1, len(values)) for values in found]
        labels = ["positive" if score > 0 else "negative" if score < 0 else "neutral" for score in scores]
        return [Output(label=label, score=score) for label, score in zip(labels, scores, strict=True)]

    return run
'''

_TEST = '''\
"""The task NAME on its model folder, computed as a worker computes a batch: python -m pytest"""

from pathlib import Path

from headrace.tasks import try_out
from NAME_task import TASK

MODEL = Path(__file__).parents[1] / "model"


def test_words_decide() -> None:
    good, bad, neither = try_out(
        TASK, [{"text": "what a lovely mill"}, {"text": "the bread is stale"}, {"text": "a river"}], MODEL
    )
    assert (good.label, bad.label, neither.label) == ("positive", "negative", "neutral")


def test_the_example_has_an_output() -> None:
    (output,) = try_out(TASK, [TASK.example], MODEL)
    assert isinstance(output, TASK.output)
'''

_FILES_TASK = '''\
"""The task NAME: its input, its output, and what Headrace must know of it. No torch here: the API imports this."""

from pydantic import BaseModel, Field

from headrace.tasks import Task


class Input(BaseModel):
    """A text, or a file with one."""

    text: str = Field("", max_length=100_000, description="the text")
    file_id: str | None = Field(None, description="a file of the caller, such as an upload, in place of the text")


class Output(BaseModel):
    """What was counted. Headrace adds `files`: the table of the words."""

    words: int = Field(description="number of different words")


TASK = Task(
    name="NAME",
    input=Input,
    output=Output,
    runner="NAME_task.runner:load",
    example={"text": "what a lovely mill"},
    with_context=True,  # the runner reads and makes files, and tells how far it is
    output_texts=(),  # the fields of the output with text for the tenant's policy to check: here none
    summary="Count the words of a text, and make a table of them",
)
'''

_FILES_RUNNER = '''\
"""The runner of the task NAME: only workers import it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from headrace.tasks import Context
from NAME_task import Input, Output


def load(_folder: Path | None) -> Callable[[list[Input], list[Context]], list[Output]]:
    """Return the runner. A folder of a model version is not needed here."""

    def run(batch: list[Input], contexts: list[Context]) -> list[Output]:
        """Batch in, batch out: one output for each input, in order. Errors of a context pass through."""
        return [count(one, context) for one, context in zip(batch, contexts, strict=True)]

    return run


def count(one: Input, context: Context) -> Output:
    """Count the words of one input."""
    text = one.text if one.file_id is None else context.read(one.file_id).decode(errors="replace")
    words: Counter[str] = Counter()
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        words.update(line.lower().split())
        context.progress(number, len(lines), "counting")
    table = "".join(f"{word},{times}\\n" for word, times in words.most_common())
    context.file("words.csv", table.encode(), "text/csv")
    return Output(words=len(words))
'''

_FILES_TEST = '''\
"""The task NAME, computed as a worker computes a batch: python -m pytest"""

from headrace.tasks import Context, try_out
from NAME_task import TASK


def test_the_words_of_a_file_are_counted() -> None:
    context = Context({"file_1": b"a mill and\\na river"})
    (output,) = try_out(TASK, [{"file_id": "file_1"}], contexts=[context])
    assert output.words == 4
    assert context.files[0].content.startswith(b"a,2\\n")
    assert context.told[-1] == (2, 2, "counting")


def test_the_example_has_an_output() -> None:
    (output,) = try_out(TASK, [TASK.example])
    assert isinstance(output, TASK.output)
'''

_WORDS = '{"lovely": 1, "good": 1, "fresh": 1, "stale": -1, "bad": -1, "broken": -1}\n'

_INPUTS = '''\
"""How requests of the task NAME are checked and counted: as TASK says."""

from headrace.features.NAME.task import PART as SPEC
from headrace.prompts.tasks.own_task import own_inputs

PART = own_inputs(SPEC)
'''

_MODEL = '''\
"""What loads the models of the task NAME: its runner."""

from functools import partial

from headrace.features.NAME.task import PART as SPEC
from headrace.workers.tasks.own_task import load_own_model
from headrace.workers.tasks.task_model import ModelPart

PART = ModelPart(SPEC, partial(load_own_model, SPEC))
'''

_ROUTES = '''\
"""The API of the task NAME: ``POST /v1/tasks/NAME``."""

from headrace.features.NAME.task import PART as SPEC
from headrace.producer_api.tasks.own_task import own_routes

PART = own_routes(SPEC)
'''


def _parts(*, makes_files: bool) -> tuple[str, str, str, Mapping[str, str]]:
    """Return the declaration of the task, its runner, its test, and the files of a model."""
    if makes_files:
        return _FILES_TASK, _FILES_RUNNER, _FILES_TEST, {}
    return _TASK, _RUNNER, _TEST, {"model/words.json": _WORDS}


def _package(*, makes_files: bool) -> Mapping[str, str]:
    task, runner, test, model = _parts(makes_files=makes_files)
    own = {"NAME_task/__init__.py": task, "NAME_task/runner.py": runner, "tests/test_NAME.py": test}
    return {"pyproject.toml": _PROJECT, **own, **model}


def _feature(*, makes_files: bool) -> Mapping[str, str]:
    task, runner, test, model = _parts(makes_files=makes_files)
    task = task.replace("NAME_task.runner", "headrace.features.NAME.runner").replace(
        "from headrace.tasks import Task\n",
        "from headrace.store.tasks.own_task import spec_of\nfrom headrace.tasks import Task\n",
    )
    runner = runner.replace(
        "from headrace.tasks import Context\nfrom NAME_task import Input, Output",
        "from NAME_task import Input, Output\nfrom headrace.tasks import Context",
    )
    test = re.sub(
        r"(from headrace.tasks import .*)\nfrom NAME_task import TASK",
        r"from headrace.features.NAME.task import TASK\n\1",
        test,
    )
    return {
        "features/NAME/__init__.py": '"""The task NAME."""\n',
        "features/NAME/task.py": f"{task}\nPART = spec_of(TASK)\n",
        "features/NAME/inputs.py": _INPUTS,
        "features/NAME/model.py": _MODEL,
        "features/NAME/task_routes.py": _ROUTES,
        "features/NAME/runner.py": runner.replace("NAME_task import", "headrace.features.NAME.task import"),
        "tests/features/NAME/test_NAME.py": test.replace("parents[1]", "parent"),
        **{f"tests/features/NAME/{path}": text for path, text in model.items()},
    }


def new_task(
    name: Annotated[str, typer.Argument(help="The task's name, as requests will say it, such as sentiment.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Where it is written; by default ./NAME, or this checkout.", show_default=False),
    ] = None,
    feature: Annotated[
        bool, typer.Option("--feature", help="Write it as a feature of a checkout of Headrace: features/NAME.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="A task that reads and makes files and tells how far it is.")
    ] = False,
) -> None:
    """Write the package of a task of your own: schemas, a runner of ten lines, a model folder and a test.

    It is a small working example, which you change. docs/extending.md goes on from there.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"a task's name is up to 40 of a-z, 0-9 and _, with a letter first, not {name!r}")
    if name in TASKS or name == FLOW_TASK:
        raise InvalidRequest(
            f"there is a task {name} already, and no process would start with two: choose another name"
        )
    if feature:
        _new_feature(name, folder or Path(), _feature(makes_files=files))
        return
    place = folder or Path(name)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InvalidRequest(f"{place} is there already: give another place with --folder, or remove it")
    _write(_package(makes_files=files), name, place)
    say(f"wrote {place}: next, `pip install -e {place}` into Headrace's environment, and start its processes again")


def _new_feature(name: str, checkout: Path, files: Mapping[str, str]) -> None:
    if not (checkout / "headrace" / "assembly.py").is_file():
        raise InvalidRequest(f"{checkout.absolute()} is no checkout of Headrace: give its folder with --folder")
    if iskeyword(name):
        raise InvalidRequest(f"{name} is a word of Python, and no folder of modules: choose another name")
    for place in (checkout / "features" / name, checkout / "tests" / "features" / name):
        if place.exists():
            raise InvalidRequest(f"{place} is there already: choose another name, or remove it")
    _write(files, name, checkout)
    say(f'wrote features/{name} and tests/features/{name}: next, add to FEATURES in headrace/assembly.py: "{name}",')


def _write(files: Mapping[str, str], name: str, place: Path) -> None:
    for path, text in files.items():
        target = place / path.replace("NAME", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("NAME", name).replace("DASHED", name.replace("_", "-")))
