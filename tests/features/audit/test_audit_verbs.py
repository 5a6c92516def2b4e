"""``headrace audit`` on a real database, and on an exported file alone."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import structlog
from sqlalchemy import text
from typer.testing import CliRunner, Result

from headrace.cli.tree import app
from headrace.features.audit.audit_heads import AuditHeads
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.registry.models import ModelVersion, register_version
from headrace.store.scheduling.queues import pause
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys

ROOT = Path(__file__).parents[3]

Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``headrace audit``, for a log of two tenants and a model."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("HEADRACE_HOME", str(settings.home))
    monkeypatch.setenv("HEADRACE_AUDIT_HEAD_KEY", "of-the-auditor")
    for name in ("acme", "globex"):
        tenant = api_keys.create_tenant(db, name)
        for number in range(3):
            api_keys.create_key(db, tenant, f"k{number}", ["audit:read"], actor="tests")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["audit", *map(str, arguments)])

    return run


def register(db: Database) -> ModelVersion:
    return register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=512,
        files={},
        actor="t",
    )


def exported(run: Run, file: Path, *arguments: str) -> list[dict[str, object]]:
    file.write_bytes(run("export", *arguments).stdout_bytes)
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]


def test_what_is_exported_is_verified_without_a_database(
    run: Run, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(db)
    log, acme, heads = tmp_path / "log.jsonl", tmp_path / "acme.jsonl", tmp_path / "heads.jsonl"
    rows = exported(run, log)
    assert (len(rows), len(exported(run, acme, "--tenant", "acme"))) == (9, 4)
    assert len(exported(run, tmp_path / "system.jsonl", "--tenant", "system")) == 1
    heads.write_bytes(run("head").stdout_bytes)
    assert "9 rows of 3 chains" in run("verify", "--head", heads).stdout
    monkeypatch.delenv("DATABASE_URL")
    good = run("verify", log, "--head", heads)
    assert (good.exit_code, "agree with 3 heads" in good.stdout) == (0, True)
    alone = run("verify", acme)
    assert (alone.exit_code, "only a --head can show" in alone.stdout) == (0, True)
    bad = tmp_path / "bad.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for forged, said in (
        ([*lines[:2], lines[2].replace(b"tests", b"nobody"), *lines[3:]], f"row {rows[2]['id']}: changed"),
        (lines[:2] + lines[3:], f"row {rows[3]['id']}: missing: place 3 is not between row {rows[1]['id']}"),
        (lines[:1] + lines[2:3] + lines[1:2] + lines[3:], f"row {rows[2]['id']}: missing: place 2"),
        (lines[:3] + lines[4:], "place 4: cut"),
        ([*lines, lines[2]], f"row {rows[2]['id']}: reordered"),
        ([*lines, lines[2][:50]], "JSON object"),
        ([*lines[:2], b'{"actor":"nobody",' + lines[2][1:], *lines[3:]], "field twice"),
    ):
        bad.write_bytes(b"".join(forged))
        result = run("verify", bad, "--head", heads)
        assert (result.exit_code, said in result.stdout) == (1, True), result.stdout
        assert run("verify", bad, "--head", heads, "--most", "1").exit_code == 1
    bad.write_text("\n".join(json.dumps(row) for row in rows))
    assert run("verify", bad, "--head", heads).exit_code == 0, "another program's spaces change nothing"


def test_no_rows_are_not_a_good_log(run: Run, db: Database, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    result = run("verify", empty)
    assert (result.exit_code, "no rows" in result.stdout) == (1, True)
    acme = api_keys.find_tenant(db, "acme")
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER headrace_audit_append_only"))
        connection.execute(text("DELETE FROM audit_log WHERE tenant_id = :acme"), {"acme": acme})
    result = run("verify")
    assert (result.exit_code, f"{acme}: place 1: cut" in result.stdout) == (1, True)
    with db.begin() as connection:
        connection.execute(text("DELETE FROM audit_log"))
        connection.execute(text("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER headrace_audit_append_only"))
    assert "2 findings" in run("verify").stdout
    with db.begin() as connection:
        connection.execute(text("DELETE FROM audit_heads"))
    result = run("verify")
    assert (result.exit_code, "there are no rows" in result.stdout) == (1, True)


def test_an_end_that_was_cut_off_is_noticed_without_a_head(run: Run, db: Database) -> None:
    acme, globex = (api_keys.find_tenant(db, name) for name in ("acme", "globex"))
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER headrace_audit_append_only"))
        connection.execute(text("DELETE FROM audit_log WHERE tenant_id = :acme AND seq > 2"), {"acme": acme})
        connection.execute(text("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER headrace_audit_append_only"))
    result = run("verify")
    assert (result.exit_code, f"{acme}: place 3: cut" in result.stdout) == (1, True)
    assert globex not in result.stdout
    assert run("verify", "--tenant", "globex").exit_code == 0
    # Later entries do not hide it: they are chained to the end of the chain.
    api_keys.create_key(db, acme, "k", ["audit:read"], actor="tests")
    result = run("verify")
    assert (result.exit_code, ": missing: places 3 to 4" in result.stdout) == (1, True)


def test_a_last_row_that_was_written_anew_is_noticed_without_a_head(run: Run, db: Database) -> None:
    acme = api_keys.find_tenant(db, "acme")
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER headrace_audit_append_only"))
        for change in ("actor = 'x'", "hash = headrace_audit_hash(audit_log)"):
            connection.execute(
                text(f"UPDATE audit_log SET {change} WHERE tenant_id = :acme AND seq = 4"), {"acme": acme}
            )
        connection.execute(text("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER headrace_audit_append_only"))
    result = run("verify")
    assert (result.exit_code, ": rewritten: " in result.stdout) == (1, True)
    api_keys.create_key(db, acme, "k", ["audit:read"], actor="tests")
    result = run("verify")
    assert (result.exit_code, ": replaced: " in result.stdout) == (1, True)


def test_the_documented_program_verifies_by_hand(run: Run, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "audit.md").read_text(), re.DOTALL)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    exported(run, good)
    lines = good.read_bytes().splitlines(keepends=True)

    def verifies(file: Path) -> bool:
        return subprocess.run([sys.executable, "-c", program, file], capture_output=True, check=False).returncode == 0

    assert verifies(good)
    for forged in (lines[1:], [*lines[:3], lines[3].replace(b"tests", b"nobody"), *lines[4:]]):
        bad.write_bytes(b"".join(forged))
        assert not verifies(bad)


def test_changes_to_the_table_are_found(run: Run, db: Database, tmp_path: Path) -> None:
    heads = tmp_path / "heads.jsonl"
    heads.write_bytes(run("head").stdout_bytes)
    assert run("verify", "--head", heads, "--tenant", "acme").exit_code == 0
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER headrace_audit_append_only"))
        newest = connection.execute(text("SELECT id FROM audit_log ORDER BY id DESC LIMIT 2"))
        last, before = newest.scalars().all()
        connection.execute(text("UPDATE audit_log SET actor = 'x' WHERE id = :id"), {"id": before})
        connection.execute(text("DELETE FROM audit_log WHERE id = :id"), {"id": last})
    result = run("verify", "--head", heads)
    assert result.exit_code == 1
    # The same chain was also cut, but only its first broken link is reported.
    for line in (f"row {before}: changed", "headrace_audit_append_only is gone or off", "1 findings"):
        assert line in result.stdout
    stopped = run("verify", "--most", "1")
    assert (stopped.exit_code, "stopped after 1 findings" in stopped.stdout) == (1, True)
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER headrace_audit_append_only"))
    assert "gone or off" not in run("verify").stdout


def test_a_trigger_that_is_gone_is_a_failure_although_every_row_is_good(run: Run, db: Database) -> None:
    assert run("verify").exit_code == 0
    with db.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER headrace_audit_append_only"))
    try:
        result, told = run("verify"), run("verify", "--json")
    finally:
        with db.begin() as connection:
            connection.execute(text("ALTER TABLE audit_log ENABLE ALWAYS TRIGGER headrace_audit_append_only"))
    assert (result.exit_code, "gone or off" in result.stdout) == (1, True)
    assert (told.exit_code, orjson.loads(told.stdout)["verified"]) == (1, False)


def test_heads_are_taken_from_a_dispatchers_log_and_only_if_they_are_signed(
    run: Run, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(db)
    duty, log = AuditHeads(db, "of-the-auditor"), tmp_path / "dispatcher.log"
    with structlog.testing.capture_logs() as told:
        duty.log_heads()
        duty.log_heads()
        pause(db, api_keys.find_tenant(db, "acme"), "tiny@1", actor="t")
        duty.log_heads()
    assert len(told) == 4, "what has not moved is not told again"
    lines = [orjson.dumps(line) for line in [{"event": "dispatcher.leading"}, *told]]
    log.write_bytes(b"\n".join(lines))
    assert "agree with 4 heads" in run("verify", "--head", log).stdout
    log.write_bytes(b"\n".join(lines).replace(b'"seq":4', b'"seq":3'))
    result = run("verify", "--head", log)
    assert isinstance(result.exception, InvalidRequest)
    assert "HEADRACE_AUDIT_HEAD_KEY" in str(result.exception)
    log.write_bytes(b"nonsense")
    assert "line 1" in str(run("verify", "--head", log).exception)
    assert "nothing" in str(run("verify", tmp_path / "nothing").exception)
