"""Whatever is wrong is said in one line, with an exit code, before anything is started."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from store.db import Database
from store.registry import register_version
from store.settings import Settings, child_environment


def headrace(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    base = child_environment({"HEADRACE_HOME": str(home)})
    for name in ("DATABASE_URL", "REDIS_URL"):
        base.pop(name, None)
    argv = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(argv, env=base | env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "env", "said", "exit_code"),
    [
        (["up"], {"HEADRACE_PROT": "1"}, "unknown setting HEADRACE_PROT", 2),
        (["up"], {"HEADRACE_API_PORT": "http"}, "HEADRACE_API_PORT: ", 2),
        (["up"], {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}, "Postgres is not available: ", 1),
        (["up"], {"DATABASE_URL": "mysql://x"}, "DATABASE_URL: needs postgresql://", 2),
        (["jobs"], {}, "no API key: set HEADRACE_API_KEY", 2),
        (["jobs"], {"HEADRACE_API_KEY": "k", "HEADRACE_API_URL": "localhost"}, "HEADRACE_API_URL: not an address", 2),
        (
            ["jobs"],
            {"HEADRACE_API_KEY": "k", "HEADRACE_API_URL": "http://127.0.0.1:1"},
            "no answer from http://127.0.0.1:1",
            1,
        ),
        (["submit"], {"HEADRACE_API_KEY": "k"}, "give either a prompt or --file", 1),
        (["submit", "-f", "/nowhere"], {"HEADRACE_API_KEY": "k"}, "/nowhere cannot be read", 1),
        (["keys", "create", "me"], {}, "DATABASE_URL is not set", 2),
        (["keys", "create", "me"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "Postgres is not available", 1),
    ],
)
def test_one_line_and_no_stack_trace(
    tmp_path: Path, arguments: list[str], env: dict[str, str], said: str, exit_code: int
) -> None:
    done = headrace(tmp_path / "home", *arguments, **env)
    assert done.stderr.startswith(f"headrace: {said}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == exit_code
    assert not (tmp_path / "home" / "pg").exists()


def test_a_redis_that_is_away_is_said_and_the_postgres_started_for_it_is_stopped(
    tmp_path: Path, settings: Settings
) -> None:
    done = headrace(tmp_path, "up", DATABASE_URL=settings.database_url, REDIS_URL="redis://127.0.0.1:1")
    assert done.stderr.splitlines()[-1].startswith("headrace: Redis at 127.0.0.1:1 cannot be reached: ")
    assert done.returncode == 1


@pytest.mark.parametrize("verb", ["api", "worker", "dispatcher", "migrate"])
def test_each_process_without_its_services_says_what_is_missing(tmp_path: Path, verb: str) -> None:
    arguments = ["--model", "fake"] if verb == "worker" else []
    done = headrace(tmp_path, verb, *arguments)
    assert done.returncode != 0
    assert "DATABASE_URL is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_of_a_process_is_its_own(tmp_path: Path) -> None:
    done = headrace(tmp_path, "worker", "--help")
    assert done.returncode == 0
    assert "usage: python -m workers" in done.stdout


def test_a_model_version_is_priced(tmp_path: Path, settings: Settings, db: Database) -> None:
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=512,
        files={},
        actor="tests",
    )
    where = {"DATABASE_URL": settings.database_url}
    said = headrace(tmp_path, "price", "tiny", "--input", "0.15", "--output", "0.6", **where).stdout
    assert said == "tiny@1 is priced\n"
    with db.begin() as connection:
        row = connection.execute(text("SELECT model, version, input, cached_input, output FROM model_prices")).one()
    assert tuple(row) == ("tiny", 1, Decimal("0.15"), Decimal("0.15"), Decimal("0.6"))
    for model, amount, words in (
        ("tiny@2", "1", "no model 'tiny@2'"),
        ("tiny", "x", "'x'"),
    ):
        refused = headrace(tmp_path, "price", model, f"--input={amount}", "--output", "1", **where)
        assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr
