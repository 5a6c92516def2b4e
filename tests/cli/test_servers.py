"""The two servers from wheels: data survives, folders are checked, an unprivileged user can run them."""

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, text

from headrace.cli.local.folders import MAX_SOCKET_PATH_BYTES, unprivileged_user
from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.store.child_process import Child, Command
from headrace.store.errors import Unavailable
from tests.processes import WAIT_S

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(server_folder: Path) -> Path:
    return server_folder


@pytest.fixture
def postgres(folder: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(folder / "pg", folder / "pg.log")
    yield server
    server.stop()


@pytest.fixture
def valkey(folder: Path) -> Iterator[LocalValkey]:
    server = LocalValkey(folder / "kv", folder / "kv.log")
    yield server
    server.stop()


def query(url: str, statement: str) -> object:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def test_postgres_keeps_its_data_over_a_restart_and_runs_with_fsync(postgres: LocalPostgres) -> None:
    postgres.start()
    query(postgres.url, "CREATE TABLE kept AS SELECT 'water' AS what")
    assert query(postgres.url, "SHOW fsync") == "on"
    postgres.stop()
    postgres.start()
    assert query(postgres.url, "SELECT what FROM kept") == "water"


def test_postgres_comes_back_after_it_was_killed(postgres: LocalPostgres) -> None:
    postgres.start()
    query(postgres.url, "CREATE TABLE kept AS SELECT 'water' AS what")
    assert postgres.child
    with create_engine(postgres.url).connect() as session:
        pid = int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())
        # A session that notices the end of its server late still holds the server's memory.
        os.kill(pid, signal.SIGSTOP)
        noticed = threading.Timer(1.0, os.kill, (pid, signal.SIGCONT))
        noticed.start()
        postgres.child.kill()
        postgres.start()
        noticed.join()
        session.invalidate()
    assert query(postgres.url, "SELECT what FROM kept") == "water"


@pytest.mark.full
def test_postgres_refuses_a_folder_of_another_major_version(postgres: LocalPostgres, folder: Path) -> None:
    postgres.start()
    postgres.stop()
    (folder / "pg" / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(Unavailable, match=r"PostgreSQL 12.* 18"):
        postgres.start()


def test_an_old_postgres_of_the_system_is_refused_before_it_makes_anything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = folder / "bin" / "postgres"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)'\n")
    old.chmod(0o755)
    monkeypatch.setattr("headrace.cli.local.postgres.find_binaries", lambda: old.parent)
    with pytest.raises(Unavailable, match=r"PostgreSQL 15 .* 17"):
        LocalPostgres(folder / "pg", folder / "pg.log").start()
    assert list((folder / "pg").iterdir()) == []


@pytest.mark.full
def test_postgres_removes_a_pid_file_whose_number_belongs_to_another_program(
    postgres: LocalPostgres, folder: Path
) -> None:
    postgres.start()
    postgres.stop()
    # Of the server's own user: it would take any other for a stale one by itself.
    other = Child(Command("sleep", ["/bin/sleep", "600"], folder / "sleep.log", user=unprivileged_user()))
    try:
        (folder / "pg" / "data" / "postmaster.pid").write_text(f"{other.pid}\n")
        postgres.start()
        assert query(postgres.url, "SELECT 1") == 1
        assert other.exit_code is None
    finally:
        other.stop()


@pytest.mark.full
def test_postgres_refuses_a_folder_that_another_one_uses(
    postgres: LocalPostgres, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cli.local.postgres.FORMER_S", 0.2)
    postgres.start()
    assert postgres.child
    second = LocalPostgres(folder / "pg", folder / "second.log")
    with pytest.raises(Unavailable, match=rf"pid {postgres.child.pid}\b"):
        second.start()
    assert query(postgres.url, "SELECT 1") == 1


@pytest.mark.full
def test_postgres_says_why_it_did_not_start(postgres: LocalPostgres, folder: Path) -> None:
    postgres.start()
    postgres.stop()
    (folder / "pg" / "data" / "postgresql.conf").write_text("shared_buffers = 'much'\n")
    with pytest.raises(Unavailable, match=r"did not start.*pg\.log"):
        postgres.start()


@pytest.mark.full
def test_an_interrupted_initdb_leaves_nothing_behind(postgres: LocalPostgres, folder: Path) -> None:
    (folder / "pg" / "data.new").mkdir()
    (folder / "pg" / "data.new" / "half").touch()
    postgres.start()
    assert query(postgres.url, "SELECT 1") == 1


def test_valkey_keeps_its_data_over_a_restart(valkey: LocalValkey) -> None:
    valkey.start()
    with redis.from_url(valkey.url) as client:
        client.set("what", "water")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    valkey.stop()
    valkey.start()
    with redis.from_url(valkey.url) as client:
        assert client.get("what") == b"water"


@pytest.mark.full
def test_valkey_refuses_a_folder_that_another_one_uses(valkey: LocalValkey, folder: Path) -> None:
    valkey.start()
    with pytest.raises(Unavailable, match="another Valkey"):
        LocalValkey(folder / "kv", folder / "second.log").start()


@pytest.mark.full
def test_a_deep_home_gets_sockets_with_a_short_path(folder: Path) -> None:
    deep = folder / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    postgres, valkey = LocalPostgres(deep / "pg", folder / "pg.log"), LocalValkey(deep / "kv", folder / "kv.log")
    try:
        postgres.start()
        valkey.start()
        assert query(postgres.url, "SELECT 1") == 1
        with redis.from_url(valkey.url) as client:
            assert client.ping()
            path = client.connection_pool.connection_kwargs["path"]
        assert len(path) <= MAX_SOCKET_PATH_BYTES
        assert (deep / "pg" / "data" / "PG_VERSION").exists()
    finally:
        valkey.stop()
        postgres.stop()
        shutil.rmtree(Path(path).parent)
        shutil.rmtree(Path(postgres.url.partition("host=")[2]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root meets folders that the server's user cannot walk to")
@pytest.mark.full
def test_as_root_a_barred_home_is_stood_in_for_and_no_mode_is_changed(folder: Path) -> None:
    barred = folder / "barred"
    barred.mkdir(mode=0o700)
    postgres = LocalPostgres(barred / "pg", folder / "pg.log")
    stand_in = (barred / "pg").resolve()
    try:
        postgres.start()
        query(postgres.url, "CREATE TABLE kept AS SELECT 'water' AS what")
        postgres.stop()
        again = LocalPostgres(barred / "pg", folder / "pg.log")
        again.start()
        assert query(again.url, "SELECT what FROM kept") == "water"
        again.stop()
        assert barred.stat().st_mode & 0o777 == 0o700
    finally:
        postgres.stop()
        shutil.rmtree(stand_in)


AS_A_USER = """
import os, sys
from pathlib import Path
from headrace.cli.local.postgres import LocalPostgres
from headrace.store.child_process import Child, Command
from headrace.cli.local.valkey import LocalValkey
folder = Path(sys.argv[1])
postgres, valkey = LocalPostgres(folder / "pg", folder / "pg.log"), LocalValkey(folder / "kv", folder / "kv.log")
postgres.start()
valkey.start()
print(os.geteuid(), (folder / "pg" / "data").stat().st_uid)
valkey.stop()
postgres.stop()
"""


@pytest.mark.full
def test_both_run_as_a_normal_user(folder: Path) -> None:
    """As root, become one that may read everything, since the interpreter may lie in root's own folder."""
    argv = [sys.executable, "-c", AS_A_USER, str(folder)]
    uid = os.geteuid() or 65_534
    if os.geteuid() == 0:
        os.chown(folder, uid, uid)
        may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *may_read, *argv]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == [str(uid), str(uid)]


def test_both_end_when_their_parent_is_killed(folder: Path) -> None:
    script = AS_A_USER.partition("print(")[0] + (
        "print(postgres.child.pid, valkey.child.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == -signal.SIGKILL
    for pid in map(int, done.stdout.split()):
        await_end(pid)
    assert "database system is shut down" in (folder / "pg.log").read_text()


def await_end(pid: int) -> None:
    """Return once the process has ended; a pidfd becomes readable then."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(fd) as file:
        assert select.select([file], [], [], WAIT_S)[0], f"process {pid} still runs"
