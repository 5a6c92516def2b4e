"""Each process stops on a signal at the worst moment: in a callback in which Python drops exceptions."""

import signal
from collections.abc import Iterator, Mapping

import pytest

from headrace.store.child_process import descendants, still_alive
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings, child_environment
from tests.folders import reachable_folder
from tests.processes import Process, StartProcess, free_port, python
from tests.producer_api.serving import environment
from tests.workers.conftest import version, worker_environment

__all__ = ["version"]

pytestmark = pytest.mark.timeout(600)

# Runs a module as ``python -m`` does. As soon as it has a handler for SIGTERM, the signal comes while Python runs the
# callback of a weak reference, as it does after an import to free the module's lock.
AT_THE_WORST_MOMENT = """
import runpy, signal, sys, weakref

class Lock:
    pass

install, comes = signal.signal, [True]

def handled(number, handler):
    before = install(number, handler)
    if number == signal.SIGTERM and callable(handler) and comes.pop() if comes else False:
        lock = Lock()
        reference = weakref.ref(lock, lambda _: signal.raise_signal(signal.SIGTERM))
        del lock
    return before

signal.signal = handled
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def told_at_the_worst_moment(start: StartProcess, env: Mapping[str, str], module: str, *arguments: str) -> Process:
    return start(python("-c", AT_THE_WORST_MOMENT, module, *arguments), env)


@pytest.mark.full
def test_the_api(settings: Settings, start_process: StartProcess) -> None:
    process = told_at_the_worst_moment(start_process, environment(settings), "headrace.producer_api")
    assert process.wait_exit(180) == 0, process.log()
    names = [event["event"] for event in process.events()]
    assert (names[0], names[-1]) == ("api_started", "api_stopped"), process.log()


def test_a_worker(settings: Settings, version: ModelVersion, start_process: StartProcess) -> None:
    env = worker_environment(settings, {})
    process = told_at_the_worst_moment(start_process, env, "headrace.workers", "--model", version.model)
    assert process.wait_exit(180) == 0, process.log()
    assert process.events("drain_began")


@pytest.mark.full
def test_a_dispatcher(settings: Settings, start_process: StartProcess) -> None:
    process = told_at_the_worst_moment(start_process, worker_environment(settings, {}), "headrace.workers.dispatcher")
    assert process.wait_exit(180) == 0, process.log()


@pytest.mark.full
def test_flower(settings: Settings, start_process: StartProcess) -> None:
    changes = {"flower_port": free_port(), "flower_basic_auth": "watcher:a long password"}
    process = told_at_the_worst_moment(start_process, worker_environment(settings, changes), "headrace.workers.flower")
    assert process.wait_exit(180) == 0, process.log()


@pytest.fixture
def home() -> Iterator[dict[str, str]]:
    """The environment of a stack in a home of its own."""
    with reachable_folder() as folder:
        ports = {f"HEADRACE_{name}_PORT": str(free_port()) for name in ("API", "FLOWER", "WORKER_METRICS")}
        env = child_environment({"HEADRACE_HOME": str(folder), **ports})
        yield {name: value for name, value in env.items() if name not in ("DATABASE_URL", "REDIS_URL")}


@pytest.mark.parametrize(("verb", "code"), [("up", 0), ("demo", 130)])
@pytest.mark.full
def test_a_stack(home: dict[str, str], start_process: StartProcess, verb: str, code: int) -> None:
    process = told_at_the_worst_moment(start_process, home, "headrace.cli.main", verb, "--model", "fake")
    assert process.wait_exit(180) == code, process.log()
    assert "PostgreSQL started" not in process.log(), "it went on although it was told to stop"


@pytest.mark.full
def test_a_demo_that_waits_for_its_jobs(home: dict[str, str], start_process: StartProcess) -> None:
    env = home | {"HEADRACE_FAKE_STEP_MS": "5000", "HEADRACE_DRAIN_S": "1"}
    process = start_process(python("-m", "headrace.cli.main", "demo", "--model", "fake"), env)
    process.wait_log("jobs submitted", 180)
    started = descendants(process.pid)
    assert len(started) > 5
    process.signal(signal.SIGTERM)
    assert process.wait_exit(180) == 130, process.log()
    assert still_alive(started) == set()
