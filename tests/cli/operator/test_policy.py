"""``headrace policy``, as a command."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from headrace.cli.operator import policy
from headrace.policy.evaluation import Score
from tests.cli.test_main import headrace


@pytest.mark.full
def test_evaluate_prints_every_recogniser_for_every_set(tmp_path: Path) -> None:
    done = headrace(tmp_path, "policy", "evaluate")
    assert (done.returncode, done.stderr) == (0, "")
    row = re.search(r"^email" + r" +(\d+) +([\d.]+) +([\d.]+)" * 3 + "$", done.stdout, re.MULTILINE)
    assert row is not None, done.stdout
    assert all(float(row[number]) >= 0.95 for number in (2, 3, 5, 6, 8, 9))


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


GOOD, FORGETS, INVENTS = Score("email", 100, 95, 5), Score("email", 100, 94, 0), Score("email", 100, 100, 6)


@pytest.mark.parametrize(
    ("tuned", "held_out", "second", "code"),
    [
        (GOOD, GOOD, GOOD, 0),
        (FORGETS, GOOD, GOOD, 0),
        (GOOD, FORGETS, GOOD, 1),
        (GOOD, INVENTS, GOOD, 1),
        (GOOD, GOOD, FORGETS, 1),
    ],
)
def test_a_recogniser_below_its_goal_on_texts_it_was_not_tuned_on_is_exit_1(
    monkeypatch: pytest.MonkeyPatch, tuned: Score, held_out: Score, second: Score, code: int
) -> None:
    texts = [SimpleNamespace(is_held_out=is_held_out) for is_held_out in (False, True)]
    found = {(False,): tuned, (True,): held_out, (): second}
    monkeypatch.setattr(policy, "shipped", lambda: texts)
    monkeypatch.setattr(policy, "second", list)
    monkeypatch.setattr(policy, "evaluate", lambda cases: [found[tuple(case.is_held_out for case in cases)]])
    done = CliRunner().invoke(policy.app, ["evaluate", "--json"])
    scores = {
        name: [{"kind": "email", "num_marked": 100, "num_right": one.num_right, "num_wrong": one.num_wrong}]
        for name, one in (("tuned", tuned), ("held out", held_out), ("second set", second))
    }
    assert (done.exit_code, json.loads(done.stdout)) == (code, scores)
