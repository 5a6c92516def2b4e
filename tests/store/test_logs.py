"""What a log line looks like, from a process of its own, since logging is a process's affair."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.store.logs import configure_logging
from tests.log_events import logged

ROOT = Path(__file__).parents[2]


def lines_of(code: str, level: str = "INFO") -> list[dict[str, Any]]:
    program = "import logging, structlog\n"
    program += f"from headrace.store.logs import configure_logging\nconfigure_logging({level!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=30, text=True
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_an_event_is_one_json_line_with_its_fields() -> None:
    (line,) = lines_of("structlog.get_logger('x.y').info('job.done', job_id='job_1', took_ms=3)")
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "job.done", "level": "info", "logger": "x.y", "job_id": "job_1", "took_ms": 3}


def test_a_record_of_another_library_is_one_too() -> None:
    (line,) = lines_of("logging.getLogger('lib').warning('%s failed', 'it')")
    assert (line["event"], line["level"], line["logger"]) == ("it failed", "warning", "lib")


def test_control_characters_cannot_forge_a_line_or_move_a_cursor() -> None:
    hostile = 'a\\n{"event": "forged"}\\r\\x1b[2J\\x9b1m\\u2028\\x00'
    program = f"structlog.get_logger().info('e', text='{hostile}')\nlogging.getLogger('lib').error('{hostile}')"
    first, second = lines_of(program)
    assert first["text"] == second["event"] == 'a\n{"event": "forged"}\r\x1b[2J\x9b1m\u2028\x00'
    raw = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import structlog\nfrom headrace.store.logs import configure_logging\nconfigure_logging('INFO')\n"
            f"structlog.get_logger().info('e', text='{hostile}')",
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=30,
    ).stderr
    assert all(32 <= byte < 127 for byte in raw.rstrip(b"\n"))


def test_an_exception_is_a_field_not_more_lines() -> None:
    (line,) = lines_of("try:\n    1 / 0\nexcept ZeroDivisionError:\n    structlog.get_logger().exception('e')")
    assert "ZeroDivisionError: division by zero" in line["exception"]


def test_an_exception_that_may_quote_a_prompt_is_told_without_its_sentence() -> None:
    code = """
def fail():
    try:
        int('secret')
    except ValueError as error:
        raise RuntimeError('a sentence of ours') from error
for group in (False, True):
    try:
        try:
            fail()
        except RuntimeError as error:
            raise (ExceptionGroup('secret', [error]) if group else KeyError('secret')) from None if group else error
    except Exception:
        structlog.get_logger().exception('e')
"""
    for line in lines_of(code):
        assert "secret" not in line["exception"]
        assert "in fail" in line["exception"]
        assert "a sentence of ours" in line["exception"]
        assert "\nValueError\n" in line["exception"]


def test_what_nobody_catches_is_a_line_too() -> None:
    program = "from headrace.store.logs import configure_logging\nconfigure_logging('INFO')\n"
    program += "import asyncio, threading, warnings\n"
    hostile = '\'a\\n{"event": "forged"}\''
    program += f"""
thread = threading.Thread(target=lambda: {{}}[{hostile}])
thread.start()
thread.join()
warnings.warn({hostile})
async def forgotten():
    asyncio.create_task(asyncio.sleep(0)).add_done_callback(lambda _: {{}}[{hostile}])
    await asyncio.sleep(0.01)
asyncio.run(forgotten())
raise ValueError({hostile})
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], cwd=ROOT, capture_output=True, timeout=30, text=True
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["critical", "warning", "error", "critical"]
    told = [line for line in lines if line["level"] != "warning"]
    assert all("forged" not in json.dumps(line) for line in told)
    assert [line["exception"].rpartition("\n")[2] for line in told] == ["KeyError", "KeyError", "ValueError"]


def test_debugging_of_libraries_is_not_written() -> None:
    code = "logging.getLogger('lib').debug('a body')\nstructlog.get_logger('headrace.x').debug('ours')"
    assert [line["event"] for line in lines_of(code, "DEBUG")] == ["ours"]


def test_what_is_below_the_level_is_not_written_and_chatty_libraries_are_quiet() -> None:
    code = (
        "structlog.get_logger().info('hidden')\nlogging.getLogger('lib').info('hidden')\n"
        "structlog.get_logger().warning('seen')"
    )
    assert [line["event"] for line in lines_of(code, "WARNING")] == ["seen"]
    chatty = ("alembic", "celery.app.trace", "celery.worker.strategy", "httpcore2", "httpx2", "kombu")
    quiet = f"for name in {chatty}: logging.getLogger(name).info('hidden')\nlogging.getLogger('lib').info('seen')"
    assert [line["event"] for line in lines_of(quiet)] == ["seen"]


def test_an_unknown_level_is_told() -> None:
    with pytest.raises(ValueError, match="'LOUD'"):
        configure_logging("LOUD")


@pytest.mark.whole
def test_the_page_lists_every_event_of_the_source_and_no_other() -> None:
    events = dict(logged())
    assert not [place for place, event in events.items() if event is None], "an event's name is not fixed"
    lines = re.findall(r"^- (`.*?):", (ROOT / "docs" / "logs.md").read_text(), re.MULTILINE)
    listed = [event for line in lines for event in re.findall(r"`([\w.]+)`", line)]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(events.values())


def test_on_a_terminal_an_event_is_text_and_controls_it_no_more_than_json_does() -> None:
    hostile = "a\\nb\\x1b[2J\\x9b1m\\u2028"
    program = (
        "import logging, structlog\nfrom headrace.store.logs import configure_logging\nconfigure_logging('INFO')\n"
        f"structlog.get_logger('x').info('job.done', job_id='job_1', text='{hostile}')\n"
        f"logging.getLogger('lib').error('{hostile}')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    structlog.get_logger().exception('e')"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=theirs, check=True, timeout=30)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while part := os.read(ours, 65_536):
            shown += part
    os.close(ours)
    assert done.returncode == 0
    # Without the colours.
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    lines = text.splitlines()
    assert re.search(r"job\.done +\[x\] +job_id=job_1", lines[0])
    assert all(line.isprintable() for line in lines), lines
    assert len([line for line in lines if "[2J" in line]) == 2
    assert lines[-1] == "ZeroDivisionError: division by zero"
