"""What each entry point really loads: import-linter reads import statements, and this sees everything else."""

import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

# Between them these load all of store and prompts.
LIGHT = [
    "headrace.cli.operator.policy",
    "headrace.migrations.__main__",
    "headrace.workers.dispatcher.dispatcher",
    "headrace.workers.flower",
    "headrace.workers.host.__main__",
]
OPERATORS = ["headrace.cli.operator.admin", "headrace.cli.demo.demo"]
VERBS = [
    "headrace.cli.tree",
    "headrace.cli.client.verbs",
    "headrace.cli.client.webhooks",
    "headrace.cli.operator.processes",
]
API = "headrace.producer_api.__main__"
HEAVY = {"torch", "transformers", "safetensors"}
STARTED = {"producer_api", "workers", "models", "migrations", "fastapi", "uvicorn"}


@cache
def loaded_by(*modules: str) -> set[str]:
    """The top-level modules of a fresh interpreter that imported ``modules``, and the parts of Headrace among them."""
    names = "[name.removeprefix('headrace.').partition('.')[0] for name in sys.modules]"
    script = f"import json, sys, {', '.join(modules)}; print(json.dumps({names}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_no_neural_library_is_loaded() -> None:
    assert loaded_by(*LIGHT) & HEAVY == set()


def test_the_api_loads_no_models_and_no_worker() -> None:
    assert loaded_by(API) & {"models", "workers", "cli", "migrations", *HEAVY} == set()


def test_the_command_line_loads_none_of_what_it_starts() -> None:
    assert loaded_by(*OPERATORS) & (STARTED | HEAVY) == set()


def test_verbs_that_speak_to_the_api_and_help_load_no_database() -> None:
    assert loaded_by(*VERBS) & {"sqlalchemy", "psycopg", "redis", "celery", *STARTED, *HEAVY} == set()


def test_the_client_loads_httpx2_alone() -> None:
    ours = loaded_by("headrace.client") - loaded_by("httpx2")
    assert ours <= set(sys.stdlib_module_names) | {"headrace", "client"}


def test_the_command_loads_nothing_before_it_runs() -> None:
    """So that an early Ctrl-C finds ``main`` running, which ends without a trace."""
    assert loaded_by("headrace.cli.main") & {"typer", "rich", "pydantic", "store", "client"} == set()


def test_the_engine_decides_with_the_standard_library() -> None:
    ours = loaded_by("headrace.models.engine.llm_engine") - loaded_by("headrace.models.engine")
    assert ours <= set(sys.stdlib_module_names) | {"models"}


def test_every_package_says_that_it_is_typed() -> None:
    root = Path(__file__).parents[1]
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    names = {pattern.removesuffix("*") for pattern in packages["find"]["include"]}
    assert {name for name in names if not (root / name / "py.typed").is_file()} == set()
