"""The log of a child process: its last line, and how it is begun anew."""

from pathlib import Path

import pytest

from headrace.store.child_process import Child, Command, last_line
from tests.refusals import Naming


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", Naming("nothing")),
        ("one\n\n two \n", "two"),
        ("an Error: x\nbye", "an Error: x"),
        ("FATAL: y\nbye", "FATAL: y"),
        ("headrace worker: z\nan error behind it", "headrace worker: z"),
    ],
)
def test_the_line_with_the_reason_is_found(text: str, line: str) -> None:
    assert last_line(text) == line


def test_a_large_log_is_begun_anew_and_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.store.child_process.MAX_LOG_BYTES", 4)
    log, old = tmp_path / "logs" / "worker", tmp_path / "logs" / "worker.1"
    for before, is_kept in (("", False), ("four", False), ("five!", True)):
        log.parent.mkdir(exist_ok=True)
        log.write_text(before)
        child = Child(Command("worker", ["/bin/true"], log))
        child.kill()
        assert (old.exists(), log.read_text()) == (is_kept, "" if is_kept else before)
        assert child.log_tail() == "", "without the lines of earlier ones"
    assert old.read_text() == "five!"
