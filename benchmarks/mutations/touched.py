"""A pytest plugin that records which functions of the product each test calls, in its own process, on any thread.

``python -m benchmarks.mutations map`` uses it. The result goes to the file in TOUCHED, as lines of JSON.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType

import pytest

_ROOT = f"{Path(__file__).parents[2]}/"
_seen: set[CodeType] = set()
_failed: set[str] = set()


def _on_event(frame: FrameType, event: str, _: object) -> None:
    if event == "call":
        _seen.add(frame.f_code)


def pytest_configure() -> None:
    threading.setprofile(_on_event)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(report.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _seen.clear()
    started = time.monotonic()
    sys.setprofile(_on_event)
    result = yield
    sys.setprofile(None)
    codes = {code for code in list(_seen) if code.co_filename.startswith(_ROOT)}
    files = {(code.co_filename.removeprefix(_ROOT), code.co_qualname) for code in codes}
    calls = sorted(
        f"{file}:{name.split('.<locals>')[0]}" for file, name in files if not file.startswith((".", "tests"))
    )
    line = {"test": item.nodeid, "s": time.monotonic() - started, "ok": item.nodeid not in _failed, "calls": calls}
    with open(os.environ["TOUCHED"], "a") as out:  # noqa: TID251 - a plugin of pytest has no settings
        out.write(json.dumps(line) + "\n")
    return result
