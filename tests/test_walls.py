"""What each entry point really loads: import-linter reads import statements, and this sees everything else."""

import ast
import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from headrace.assembly import with_part

# Between them these load all of store and prompts.
LIGHT = [
    "headrace.policy.policies",
    "headrace.migrations.__main__",
    "headrace.workers.dispatcher.dispatcher",
    "headrace.workers.flower",
    "headrace.features.hosts.__main__",
]
OPERATORS = ["headrace.cli.operator.admin", "headrace.cli.demo.demo"]
VERBS = [
    "headrace.cli.tree",
    "headrace.cli.client.verbs",
    *with_part("verbs"),
    "headrace.cli.operator.processes",
]
API = "headrace.producer_api.__main__"
HEAVY = {"torch", "transformers", "safetensors"}
STARTED = {"producer_api", "workers", "models", "migrations", "fastapi", "uvicorn"}
# Of named tuples, and of answers in the client of Anthropic.
DOCUMENTED = {"_replace", "_asdict", "_request_id"}
# Files of tests that read private names. Nothing is added; a file that reads none any more is taken out.
READ_PRIVATE_NAMES = {
    "cli/test_options.py",
    "conftest.py",
    "features/batches/test_batch_keeper.py",
    "features/batches/test_batch_routes.py",
    "models/engine/test_engine_properties.py",
    "models/families/test_transformers_probe.py",
    "models/test_gpu.py",
    "features/files/test_blob_storage.py",
    "store/redis/test_connection.py",
    "workers/dispatcher/test_duty_loop.py",
    "workers/runs/test_claim_shares.py",
    "workers/test_worker_process.py",
}


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


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def reads_a_private_name(node: ast.AST) -> bool:
    """True for ``thing._name``, an import of one, and ``setattr(thing, "_name", …)`` or ``setattr("a.b._name", …)``."""
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super"))):
            return False
        case ast.Attribute(attr=name):
            return is_private(name) and name not in DOCUMENTED
        case ast.ImportFrom(module=module, names=names):
            return is_private(module or "") or any(is_private(one.name) for one in names)
        case ast.Call(func=ast.Attribute(attr="setattr" | "delattr") | ast.Name(id="setattr" | "getattr"), args=args):
            texts = [one.value for one in args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            return any(is_private(text) for text in texts)
    return False


@pytest.mark.whole
def test_no_more_tests_read_a_private_name() -> None:
    """Ruff's SLF would see attributes only: half of these names are replaced by ``monkeypatch`` or imported."""
    root = Path(__file__).parents[1]
    trees = {path: ast.parse(path.read_text()) for path in root.glob("tests/**/*.py")}
    found = {
        str(path.relative_to(root / "tests"))
        for path, tree in trees.items()
        if any(map(reads_a_private_name, ast.walk(tree)))
    }
    assert found - READ_PRIVATE_NAMES == set(), "use a public name of the subject"
    assert READ_PRIVATE_NAMES - found == set(), "take these from the list: they read none any more"
