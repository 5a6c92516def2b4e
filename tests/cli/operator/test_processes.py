"""Verbs that become another program of Headrace: which one, with which words."""

import signal

import pytest
from typer.testing import CliRunner

from cli.operator import admin
from cli.tree import app


@pytest.mark.parametrize(
    ("typed", "became"),
    [
        ("api", "producer_api"),
        ("dispatcher", "workers.dispatcher"),
        ("worker --model tiny", "workers --model tiny"),
        ("worker --model a@1 --concurrency 3 --name w", "workers --model a@1 --concurrency 3 --name w"),
        ("migrate upgrade", "migrations upgrade"),
        ("migrate roles", "migrations roles"),
        ("migrate history", "migrations history"),
        ("migrate check", "migrations check"),
        ("models measure folder", "models.catalog measure folder"),
        ("models measure folder --json", "models.catalog measure folder --json"),
        (
            "models measure tiny@2 --against tiny@1 --texts f.jsonl",
            "workers.quality_command tiny@2 --against tiny@1 --texts f.jsonl",
        ),
        (
            "plan history:tiny --workers 0..3 --wait-s 5 --json",
            "workers.planning history:tiny --workers 0..3 --wait-s 5.0 --json",
        ),
        ("register tiny folder", "models.catalog register tiny folder --dtype auto"),
        (
            "models register tiny folder --dtype int8 --sampling top_p=0.9 --json",
            "models.catalog register tiny folder --dtype int8 --sampling top_p=0.9 --json",
        ),
    ],
)
def test_a_verb_becomes_its_program(typed: str, became: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_module(*words: str) -> None:
        ran.extend(words)
        raise SystemExit(7)

    monkeypatch.setattr(admin, "run_module", run_module)
    # The handlers of this process stay.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert CliRunner().invoke(app, typed.split()).exit_code == 7
    assert " ".join(ran) == became
