"""A worker process of a host: its command, its states and its limits of time, with a child that a test controls."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.features.hosts import resident_workers as module
from headrace.features.hosts.kept_servers import ServerAddress
from headrace.features.hosts.resident_workers import ResidentWorker, end_left_over, node_name
from headrace.store.child_process import Command
from headrace.store.hosts.host_reports import PlaceState
from headrace.store.settings import Settings

HOME = Settings(home=Path("/nowhere"), drain_s=7.0)


class Child:
    """A process that does nothing, and notes the requests."""

    pid = 42

    def __init__(self, command: Command) -> None:
        self.command = command
        self.exit_code: int | None = None
        self.asked: list[str] = []
        self.log = "starting\nheadrace worker: the model is missing\n"

    def ask_to_stop(self) -> None:
        self.asked.append("stop")

    def kill(self) -> None:
        self.asked.append("kill")

    def log_tail(self) -> str:
        return self.log


class Worker:
    """A resident worker with its child, a clock and a probe that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now, self.is_ready = 100.0, False
        self.children: list[Child] = []
        monkeypatch.setattr(module, "Child", self._new_child)
        monkeypatch.setattr(module, "child_environment", dict)
        monkeypatch.setattr(module, "free_port", lambda _host, _port: 8123)
        monkeypatch.setattr(module, "HTTPConnection", self._probe)
        self.one = ResidentWorker(HOME, "h1", "a/b@2", start_limit_s=300.0, clock=lambda: self.now, **options)
        self.child = self.children[0]

    def _new_child(self, command: Command) -> Child:
        self.children.append(Child(command))
        return self.children[-1]

    def _probe(self, host: str, port: int, *, timeout: float) -> Any:
        assert (host, port, timeout) == ("127.0.0.1", 8123, 1.0)
        worker = self

        class Probe:
            status = 200

            def request(self, method: str, path: str) -> None:
                assert (method, path) == ("GET", "/readyz")
                if not worker.is_ready:
                    raise ConnectionRefusedError

            def getresponse(self) -> "Probe":
                return self

            def close(self) -> None:
                """Nothing is open."""

        return Probe()


PORTS = {"HEADRACE_WORKER_METRICS_PORT": "8123", "HEADRACE_HEALTH_HOST": "127.0.0.1"}


def test_a_worker_is_started_for_its_version_and_ends_with_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    assert worker.one.queue == "a/b@2"
    command = worker.child.command
    argv = [sys.executable, "-P", "-m", "headrace.workers", "--model", "a/b@2", "--name"]
    assert (command.name, [*command.argv]) == ("h1/a/b.2", [*argv, "h1/a/b.2"])
    assert (command.log, command.on_parent_death) == (Path("/nowhere/logs/h1_a_b.2.log"), signal.SIGTERM)
    assert command.env == PORTS
    numbered = Worker(monkeypatch, number=3).child.command
    assert ([*numbered.argv][-1], numbered.env) == ("h1/a/b.2.3", {**PORTS, "HEADRACE_DRAIN_S": "7.0"})
    served = Worker(monkeypatch, server=ServerAddress("http://127.0.0.1:9", "key")).child.command
    assert [*served.argv][-2:] == ["--server-url", "http://127.0.0.1:9"]
    assert served.env == {**PORTS, "HEADRACE_ENGINE_API_KEY": "key"}
    assert node_name("h1", "tiny@1") == "h1/tiny.1"


def test_a_worker_serves_when_it_is_ready_and_drains_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    one = worker.one
    worker.now += 300.0
    assert (one.look(), one.state, one.in_state_s) == (True, PlaceState.STARTING, 300.0)
    worker.is_ready = True
    assert (one.look(), one.state, one.in_state_s) == (True, PlaceState.SERVING, 0.0)
    worker.now += 1e6
    assert one.look(), "it may serve for ever"
    one.drain()
    worker.now += 27.0
    assert (one.look(), one.state, worker.child.asked) == (True, PlaceState.DRAINING, ["stop"])
    assert one.has_drained is False
    worker.now += 0.1
    assert (one.look(), worker.child.asked) == (False, ["stop", "kill"])
    worker.child.exit_code = 0
    assert (one.look(), one.has_drained, one.exit_code, one.pid) == (False, True, 0, 42)
    worker.child.exit_code = 1
    assert one.has_drained is False


def test_a_start_that_takes_too_long_is_killed_and_its_reason_is_its_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch)
    worker.now += 300.1
    assert (worker.one.look(), worker.child.asked) == (False, ["kill"])
    assert "the model is missing" in worker.one.why_ended(), "it is killed, and has not ended yet"
    worker.child.exit_code = -9
    assert "signal 9" in worker.one.why_ended()
    worker.child.exit_code = 1
    assert "the model is missing" in worker.one.why_ended()


def test_a_worker_that_is_hurried_has_a_grace_of_twenty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    worker.one.drain()
    worker.now += 10.0
    worker.one.hurry()
    worker.now += 20.0
    assert (worker.one.look(), worker.child.asked) == (True, ["stop", "stop"])
    worker.now += 0.1
    assert worker.one.look() is False


def test_only_workers_of_this_host_are_waited_for_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr(module, "is_worker_of", lambda host, pid: host == "h1" and pid < 3)
    monkeypatch.setattr(module, "still_alive", lambda pids: {pid for pid in pids if pid == 2})
    monkeypatch.setattr("os.kill", lambda *given: killed.append(given))
    assert end_left_over("h1", [1, 2, 3], 0.0) == 2
    assert killed == [(2, signal.SIGKILL)]
    assert end_left_over("h2", [1, 2, 3], 0.0) == 0
