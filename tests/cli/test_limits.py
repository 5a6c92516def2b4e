"""The operator's word on limits: ``headrace limits set`` and ``show``."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from store.db import Database
from store.errors import HeadraceError
from store.keys import create_tenant
from store.settings import Settings


def test_the_operator_sets_limits_and_sees_them(
    tmp_path: Path, settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    create_tenant(db, "acme")

    def limits(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["limits", *arguments, "--tenant", "acme"])
        return done.exception.message if isinstance(done.exception, HeadraceError) else done.output

    said = limits("set", "--monthly-cost", "12.50", "--concurrent-jobs", "8")
    assert "12.50 (operator 12.50); used: 0 spent, 0 reserved" in said
    said = limits("set", "--concurrent-jobs", "default")
    assert "12.50 (operator 12.50)" in said, "what is not named stays"
    assert "concurrent_jobs          no limit; used: 0" in said
    assert "name a limit" in limits("set")
    assert "a limit is a number or 'default'" in limits("set", "--queued-tokens", "many")
    assert "a limit is a number from 0 up" in limits("set", "--queued-tokens", "-1")
    assert "no API key key_0" in limits("show", "--key", "key_0")
