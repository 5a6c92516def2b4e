"""What docs/extending.md promises: its files and names exist, and a forgotten line of a registry is found."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from headrace.assembly import parts
from headrace.features.flows.task import CALL_TOOL
from headrace.models.engine.requests import EngineStats, SamplingParams
from headrace.producer_api.tasks.registry import TASK_ROUTES, TASK_URLS
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.store.metrics.worker_metrics import ENGINE_COUNTERS, ENGINE_GAUGES
from headrace.store.payloads.sampling_params import Sampling, SamplingDefaults
from headrace.store.schema.event_types import EVENT_TYPES
from headrace.store.tasks.registry import MODEL_TASKS, TASKS
from headrace.store.tasks.task_spec import TaskSpec
from headrace.workers.tasks.registry import MODEL_LOADERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
OF_THE_CORE = set(TASKS) - {task.name for task in parts("task", TaskSpec)}
WALKS = PAGE.partition("\n## Headrace itself\n")[2]


@pytest.mark.whole
def test_every_file_and_name_of_the_walks_exists() -> None:
    for path, names in re.findall(r"`([\w/]+/[\w/.]*)`(?: \(((?:`\w+`(?:, )?)+)\))?", WALKS):
        if "NAME" in path:
            continue
        assert (ROOT / path).exists(), path
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} has no {name}"


def test_every_task_has_its_part_in_each_registry() -> None:
    assert set(TASK_INPUTS) == set(TASKS)
    assert {routes.spec.name for routes in TASK_ROUTES} == set(TASKS)
    assert set(MODEL_LOADERS) == set(MODEL_TASKS)
    assert all(set(task.served_by) <= set(MODEL_TASKS) for task in TASKS.values())
    assert set(TASK_URLS) <= {url for task in TASKS.values() for url in task.urls}


def test_every_module_of_a_task_is_in_the_registries() -> None:
    for side in ("prompts", "workers"):  # routes of the core's task are faces, which are features
        # The prompts of the task of tools are those of tasks of other packages.
        own = set() if side == "workers" else {CALL_TOOL.name}
        assert OF_THE_CORE - own <= {path.stem for path in (ROOT / side / "tasks").glob("*.py")}, side
    assert {path.stem for path in (ROOT / "store" / "tasks").glob("*.py")} == {
        *OF_THE_CORE,
        "__init__",
        "flow",  # a job of several steps is of no task
        "own_task",
        "registry",
        "task_spec",
        "turn_form",  # how the turns of a generating task with server tools stand in its stream
    }


def test_every_sampling_parameter_reaches_the_engine() -> None:
    ours = {field.name for field in fields(SamplingParams)}
    assert set(Sampling.model_fields) == ours
    assert set(SamplingDefaults.model_fields) <= set(Sampling.model_fields)


def test_every_statistic_of_the_engine_is_a_metric() -> None:
    numbers = {field.name for field in fields(EngineStats)} - {"recent_batches"}
    assert numbers == ENGINE_GAUGES.keys() | ENGINE_COUNTERS.keys()


def test_every_webhook_event_is_documented() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "webhooks.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w.]+)`", row)} >= EVENT_TYPES
