"""``headrace new-task --feature`` in a copy of the tree: the folder and one line are a task that answers over HTTP."""

import shutil
import subprocess
from pathlib import Path

import pytest

from headrace.cli.new_task import new_task
from headrace.client import Client
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.settings import Settings, child_environment
from headrace.store.tenants import api_keys
from tests.processes import ROOT, StartProcess, python
from tests.producer_api.serving import environment, start_api, url_of
from tests.workers.conftest import worker_command, worker_environment


def files_of(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the product: the package and the folders that its links name."""
    copy, but = tmp_path / "copy", shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "headrace", copy / "headrace", symlinks=True, ignore=but)
    for link in (ROOT / "headrace").iterdir():
        if link.is_symlink():
            shutil.copytree(ROOT / link.name, copy / link.name, ignore=but)
    return copy


@pytest.mark.full
def test_a_folder_and_one_line_are_a_task(
    settings: Settings, db: Database, tree: Path, start_process: StartProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(tree)
    new_task("mood", tree, feature=True)
    line = capsys.readouterr().err.rpartition("assembly.py: ")[2].strip()
    added = files_of(tree).keys() - before.keys()
    assert all(name.startswith(("features/mood/", "tests/features/mood/")) for name in added)
    assert before.items() <= files_of(tree).items()
    assembly = tree / "headrace" / "assembly.py"
    begin = "FEATURES: tuple[str, ...] = (\n"
    assembly.write_text(assembly.read_text().replace(begin, f"{begin}{line}\n"))

    path = {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    own_test = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/features/mood")
    tested = subprocess.run(
        own_test, cwd=tree, env=child_environment(path | {"PYTEST_ADDOPTS": ""}), capture_output=True, check=False
    )
    assert tested.returncode == 0, tested.stdout
    services = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    register = python("-m", "headrace.models.catalog", "register", "mood", "--task", "mood")
    registering = start_process(register, services | path | {"HEADRACE_HOME": str(settings.home)})
    assert registering.wait_exit() == 0, registering.log()
    server = start_api(start_process, environment(settings, **path))
    worker = start_process(worker_command("mood"), worker_environment(settings, {}) | path)
    worker.wait_event("worker_ready")
    key = api_keys.create_key(
        db, api_keys.create_tenant(db, "acme"), "tests", ["jobs:read", "jobs:write"], actor="tests"
    )
    with Client(url_of(server), key) as client:
        body = {"model": "mood", "input": {"text": "a lovely mill"}}
        answer = client.request("POST", "/v1/tasks/mood", json=body)
        job = client.wait(client.submit(task="mood", **body)["id"])
    assert answer["output"] == job["output"] == {"label": "positive", "score": 1.0}


def test_it_writes_over_nothing_and_in_a_checkout_alone(tmp_path: Path) -> None:
    (tmp_path / "headrace").mkdir()
    with pytest.raises(InvalidRequest, match="no checkout"):
        new_task("mood", tmp_path, feature=True)
    (tmp_path / "headrace" / "assembly.py").touch()
    (tmp_path / "features" / "mood").mkdir(parents=True)
    for name in ("mood", "class"):
        with pytest.raises(InvalidRequest, match=name):
            new_task(name, tmp_path, feature=True)
    assert list((tmp_path / "features").iterdir()) == [tmp_path / "features" / "mood"]
