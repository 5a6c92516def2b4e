"""Each error is one line with an exit code, before any process starts."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import StatementError

from headrace.cli.local.home import Home, StackRecord
from headrace.cli.main import explained
from headrace.cli.operator.admin import located
from headrace.client import ConnectionLost, RequestRefused
from headrace.store.db.database import Database
from headrace.store.db.roles import API
from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings, child_environment
from tests.cases import full
from tests.roles import role_url


def headrace(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    base = child_environment({"HEADRACE_HOME": str(home)})
    for name in ("DATABASE_URL", "REDIS_URL"):
        base.pop(name, None)
    argv = [sys.executable, "-P", "-m", "headrace.cli.main", *arguments]
    return subprocess.run(
        argv, cwd=home.parent, env=base | env, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "env", "said", "exit_code"),
    [
        (["up"], {"HEADRACE_PROT": "1"}, "HEADRACE_PROT", 2),
        (["jobs"], {}, "no stack", 2),
        (["submit"], {"HEADRACE_API_KEY": "k"}, "prompt or --file", 1),
        (["keys", "create", "me"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "Postgres", 1),
        (["up", "--memory", "lots"], {}, "--memory: 'lots'", 2),
        (["up", "--model", "smollm2", "--model", "gpt-9"], {}, "'gpt-9'", 1),
        (["up", "--model", "smollm2", "--model", "./empty"], {}, "empty/config.json", 1),
        (["up", "--engine", "vllm", "--", "--port=1"], {}, "--port", 2),
        (["up"], {"HEADRACE_API_HOST": "192.0.2.1"}, "HEADRACE_API_HOST: ", 2),
        (["up"], {"HEADRACE_WEBHOOK_ALLOW_NETWORKS": "10"}, "HEADRACE_WEBHOOK_ALLOW_NETWORKS: ", 2),
        (["up"], {"HEADRACE_LOG_LEVEL": "loud"}, "HEADRACE_LOG_LEVEL: ", 2),
        *full(
            (["up"], {"HEADRACE_API_PORT": "http"}, "HEADRACE_API_PORT: ", 2),
            (["up"], {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}, "Postgres", 1),
            (["up"], {"DATABASE_URL": "mysql://x"}, "DATABASE_URL: needs postgresql://", 2),
            (["up", "--model", "./nowhere"], {}, "folder ./nowhere", 1),
            (
                ["jobs"],
                {"HEADRACE_API_KEY": "k", "HEADRACE_API_URL": "localhost"},
                "HEADRACE_API_URL",
                2,
            ),
            (
                ["jobs"],
                {"HEADRACE_API_KEY": "k", "HEADRACE_API_URL": "http://127.0.0.1:1"},
                "answer from http://127.0.0.1:1",
                1,
            ),
            (["submit", "hi", "--job", "x.json"], {"HEADRACE_API_KEY": "k"}, "with --job", 1),
            (["submit", "-f", "/nowhere"], {"HEADRACE_API_KEY": "k"}, "/nowhere", 1),
            (["keys", "create", "me"], {}, "DATABASE_URL", 2),
        ),
    ],
)
def test_one_line_and_no_stack_trace(
    tmp_path: Path, arguments: list[str], env: dict[str, str], said: str, exit_code: int
) -> None:
    (tmp_path / "empty").mkdir()
    done = headrace(tmp_path / "home", *arguments, **env)
    assert (done.stderr[:10], said in done.stderr) == ("headrace: ", True), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == exit_code
    assert not [name for name in ("pg", "valkey", "models", "engines") if (tmp_path / "home" / name).exists()]


def denied(sqlstate: str) -> Exception:
    """As SQLAlchemy raises an error of Postgres."""
    refused = type("Refused", (Exception,), {"sqlstate": sqlstate})("permission denied for table tenants\nCONTEXT: x")
    return StatementError("x", None, None, refused)


@pytest.mark.parametrize(
    ("error", "told", "exit_code"),
    [
        (SettingsError("a setting"), "a setting", 2),
        (InvalidRequest("a value"), "a value", 1),
        (RequestRefused("refused"), "refused", 1),
        (ConnectionLost("no answer"), "headrace up", 1),
        (
            ModuleNotFoundError(name="torch"),
            "package torch",
            1,
        ),
        (ModuleNotFoundError(name="store.nothing"), None, 1),
        (denied("42501"), "headrace_operator", 1),
        (denied("23505"), None, 1),
        (ValueError("a defect"), None, 1),
    ],
)
def test_an_error_that_a_person_can_correct_is_a_sentence_and_a_defect_none(
    error: Exception, told: str | None, exit_code: int
) -> None:
    said, code = explained(error)
    assert (code, said is None, (told or "") in (said or "")) == (exit_code, told is None, True), said


@pytest.mark.full
def test_a_redis_that_is_away_is_said_and_the_postgres_started_for_it_is_stopped(
    tmp_path: Path, settings: Settings
) -> None:
    done = headrace(tmp_path, "up", DATABASE_URL=settings.database_url, REDIS_URL="redis://127.0.0.1:1")
    assert done.stderr.splitlines()[-1].startswith("headrace: Redis at 127.0.0.1:1 ")
    assert done.returncode == 1


def test_a_database_user_without_the_rights_is_one_line(tmp_path: Path, settings: Settings, db: Database) -> None:
    done = headrace(tmp_path, "tenants", "create", "acme", DATABASE_URL=role_url(settings.database_url, API))
    assert done.returncode == 1
    assert "DATABASE_URL" in done.stderr.partition("permission denied")[0]
    assert done.stderr.count("\n") == 1


def test_a_local_stacks_key_is_not_shown_to_another_server(tmp_path: Path) -> None:
    Home(tmp_path).write_api_key("hr_local_secret")
    done = headrace(tmp_path, "jobs", HEADRACE_API_URL="http://127.0.0.1:1")
    assert (done.returncode, "HEADRACE_API_URL needs HEADRACE_API_KEY" in done.stderr) == (2, True)


def test_an_address_that_is_given_is_not_mixed_with_a_local_stacks(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        home.write_record(
            StackRecord(
                database_url="postgresql://x@127.0.0.1:1/x", redis_url="r", api_url="a", flower_url="f", models=[]
            )
        )
        assert located(Settings(home=tmp_path)) == {
            "DATABASE_URL": "postgresql://x@127.0.0.1:1/x",
            "REDIS_URL": "r",
            "HEADRACE_HOME": str(tmp_path),
        }, "a database of the operator's has no user for each program"
        assert located(Settings(home=tmp_path, database_url="given")) == {"DATABASE_URL": "given"}
        assert located(Settings(home=tmp_path, redis_url="given")) == {"REDIS_URL": "given"}


@pytest.mark.parametrize("verb", ["worker", *full("api", "host", "dispatcher", "migrate")])
def test_each_process_without_its_services_says_what_is_missing(tmp_path: Path, verb: str) -> None:
    arguments = {"worker": ["--model", "fake"], "host": ["--memory", "1GiB"]}
    done = headrace(tmp_path, verb, *arguments.get(verb, []))
    assert done.returncode != 0
    assert "DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["worker", *full("api", "host", "dispatcher", "migrate")])
def test_the_help_of_a_process_starts_nothing(tmp_path: Path, settings: Settings, verb: str) -> None:
    env = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "HEADRACE_API_PORT": "0"}
    done = headrace(tmp_path, verb, "--help", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: headrace {verb}" in done.stdout
    refused = headrace(tmp_path, verb, "--prot", "1", **env)
    assert (refused.returncode, "--prot" in refused.stderr) == (2, True), refused.stderr


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
    said = headrace(tmp_path, "models", "price", "tiny", "--input", "0.15", "--output", "0.6", **where).stdout
    assert said == "tiny@1 is priced\n"
    with db.begin() as connection:
        row = connection.execute(text("SELECT model, version, input, cached_input, output FROM model_prices")).one()
    assert tuple(row) == ("tiny", 1, Decimal("0.15"), Decimal("0.15"), Decimal("0.6"))
    for model, amount, words in (
        ("tiny@2", "1", "no model 'tiny@2'"),
        ("tiny", "x", "'x'"),
    ):
        refused = headrace(tmp_path, "models", "price", model, f"--input={amount}", "--output", "1", **where)
        assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr
