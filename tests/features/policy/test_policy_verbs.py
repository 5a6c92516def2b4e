"""``headrace policy``, as a command."""

import json
from pathlib import Path

from tests.cli.test_main import headrace


def test_test_shows_what_becomes_of_each_text(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("Mail ann@example.com\n\nthe secret word\n")
    rules = [
        {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"},
        {"id": "word", "deny": {"phrases": ["secret word"]}, "action": "block", "stage": "output"},
    ]
    (tmp_path / "policy").write_text(json.dumps({"rules": rules}))
    done = headrace(tmp_path, "policy", "test", str(tmp_path / "texts"), "-p", str(tmp_path / "policy"))
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert ["Mail ann@example.com", "Mail <EMAIL_1>", "Mail ann@example.com"] in cells
    assert ["the secret word", "the secret word", "the blocked by word"] in cells


def test_a_policy_that_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("x")
    (tmp_path / "policy").write_text('{"rules": [{"id": "x", "action": "block", "deny": {"patterns": ["a+"]}}]}')
    done = headrace(tmp_path, "policy", "test", str(tmp_path / "texts"), "-p", str(tmp_path / "policy"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "rules.0.deny: `patterns[0]`" in done.stderr
