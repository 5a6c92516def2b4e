"""A package with a task of its own: what ``headrace new-task`` writes, installed without pip, and its processes."""

from pathlib import Path

from headrace.cli.new_task import new_task
from headrace.store.settings import Settings
from tests.processes import Process, StartProcess, python
from tests.producer_api.serving import environment, start_api, url_of
from tests.workers.conftest import worker_command, worker_environment


def installed(folder: Path, entry: str) -> Path:
    """Write what an installer would: the metadata of a package with this entry point. Return the folder."""
    facts = folder / "own_task-0.1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own-task\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text(f"[headrace.tasks]\n{entry}\n")
    return folder


def new_package(folder: Path, name: str) -> Path:
    """Write the package of ``headrace new-task`` as an installed one. A process finds it by PYTHONPATH."""
    new_task(name, folder)
    return installed(folder, f"{name} = {name}_task:TASK")


class TaskStack:
    """A task as a version without files: an API process, a dispatcher, and workers that a test starts.

    ``path``: PYTHONPATH with its package. ``more``: of the environment of all processes.
    """

    def __init__(self, settings: Settings, start: StartProcess, task: str, path: str, **more: str) -> None:
        self.settings, self._start, self._task, self._path = settings, start, task, {"PYTHONPATH": path, **more}
        given = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url} | self._path
        command = python("-m", "headrace.models.catalog", "register", task, "--task", task)
        registering = start(command, given | {"HEADRACE_HOME": str(settings.home)})
        assert registering.wait_exit() == 0, registering.log()
        server = start_api(start, environment(settings, **self._path))
        start(python("-m", "headrace.workers.dispatcher"), worker_environment(settings, {}) | self._path)
        self.url = url_of(server)

    def worker(self, **changes: object) -> Process:
        """Start a worker; wait until it is ready, unless it is to die."""
        found = worker_environment(self.settings, {"lease_s": 2, **changes}) | self._path
        process = self._start(worker_command(self._task), found)
        if "failpoints" not in changes:
            process.wait_event("worker_ready")
        return process
