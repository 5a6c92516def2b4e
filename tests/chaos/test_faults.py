"""The fault that every run must contain: a worker that writes an outcome after its job has ended elsewhere."""

import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import faults
from tests.chaos.faults import Faults
from tests.chaos.nemesis import Strike


class Stub:
    """A cluster and its only worker, which stops as soon as it is started with a failpoint."""

    kind, name, keep, is_alive = "worker", "worker-1", True, True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = self
        self.extra: dict[str, str] = {}
        self.pid = 1
        self.is_stopped = False
        self.open_jobs = ["a", "b"]
        self.wrote_with_open: list[list[str]] = []
        self.log_of("").touch()

    def of_kind(self, kind: str) -> list[Any]:
        return [self]

    def is_ready(self, member: Any) -> bool:
        return True

    def log_of(self, name: str) -> Path:
        return self.folder / "log"

    def write(self, kind: str, **fields: object) -> None:
        assert kind == "stopped", fields

    def signal(self, member: Any, number: signal.Signals) -> bool:
        if number == signal.SIGCONT:
            self.is_stopped = False
            self.wrote_with_open.append(list(self.open_jobs))
            self.log_of("").write_text('"event": "stale_finish_refused"')
        else:
            self.pid += 1
            self.is_stopped = "HEADRACE_FAILPOINTS" in self.extra
        return True


def test_a_stopped_worker_writes_only_when_its_jobs_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(tmp_path)

    def found(*_: object, **__: object) -> Generator[None, None, list[str]]:
        yield
        return list(stub.open_jobs)

    monkeypatch.setattr(faults, "unpack_old_release", lambda _: None)
    monkeypatch.setattr(Faults, "found", found)
    strike = Faults(stub, 1, lambda _: None).carry(Strike(0.0, "pause_at_finish", "worker", 9.0))  # type: ignore[arg-type, return-value]
    for _ in range(50):
        next(strike)
    assert stub.is_stopped
    stub.open_jobs.pop()
    for _ in range(50):
        next(strike)
    assert stub.is_stopped, "one of its jobs has not ended"
    stub.open_jobs.pop()
    list(strike)
    assert stub.wrote_with_open == [[]]
