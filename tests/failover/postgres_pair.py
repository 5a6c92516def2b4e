"""A primary of Postgres and a synchronous standby, each at an address of its own on this machine."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from headrace.cli.local.folders import private_folder, unprivileged_user
from headrace.cli.local.postgres import LocalPostgres, find_binaries
from headrace.store.child_process import Child, Command, descendants
from tests.processes import wait_for

PORT = 5432
_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
_HBA = "".join(f"{line} trust\n" for line in ("local all all", "local replication all"))
_HBA += "".join(f"host {what} all 127.0.0.0/8 trust\n" for what in ("all", "replication"))


class PostgresServer:
    """One server, with its data in ``folder``."""

    def __init__(self, folder: Path, host: str) -> None:
        self.host = host
        self.log = folder.with_suffix(".log")
        self.folder = private_folder(folder.absolute(), unprivileged_user())
        self.data = self.folder / "data"
        self.child: Child | None = None
        self._bin = find_binaries()

    def init(self) -> None:
        """Make an empty database that trusts this machine."""
        first = LocalPostgres(self.folder, self.log)
        first.start()
        first.stop()
        (self.data / "pg_hba.conf").write_text(_HBA)

    def start(self) -> None:
        """Start it, as what its data says: primary or standby. Returns when it answers."""
        options = {
            "listen_addresses": self.host,
            "unix_socket_directories": str(self.folder),
            "max_connections": "300",
            "wal_sync_method": "open_datasync",
            "log_error_verbosity": "terse",
        }
        argv: list[str | Path] = [self._bin / "postgres", "-D", self.data, "-p", str(PORT)]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.child = Child(
            Command(
                name="postgres",
                argv=argv,
                log=self.log,
                env=_ENV,
                cwd=self.folder,
                user=unprivileged_user(),
                on_stop=signal.SIGINT,
            )
        )
        wait_for(self._answers, f"Postgres at {self.host} answers")

    def ask(self, sql: str) -> Any:
        """Return the first value of a statement, outside a transaction."""
        with psycopg.connect(
            host=str(self.folder), port=PORT, user="app", dbname="postgres", autocommit=True, connect_timeout=5
        ) as connection:
            found = connection.execute(sql)
            return found.fetchone()[0] if found.description else None

    def kill(self) -> None:
        """Kill all its processes at once, as the end of its machine would."""
        if self.child is None:
            return
        for pid in [self.child.pid, *descendants(self.child.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.kill()
        self.child = None

    def copying(self, primary: "PostgresServer") -> Iterator[None]:
        """Become a standby of ``primary``, from a new copy of its data; yields until it runs."""
        shutil.rmtree(self.data, ignore_errors=True)
        user = unprivileged_user()
        argv = [str(self._bin / "pg_basebackup"), "-h", str(primary.folder), "-p", str(PORT), "-U", "app"]
        argv += ["-D", str(self.data), "-R", "-X", "stream", "-c", "fast"]
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        with self.log.open("ab") as log:
            copy = subprocess.Popen(argv, env=_ENV, cwd=self.folder, stdout=log, stderr=log, **who)
        while copy.poll() is None:
            yield
        assert copy.returncode == 0, self.log.read_text()[-2000:]
        self.start()

    def promote(self) -> None:
        """Make the standby the primary. It waits for no standby, because it has none."""
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\n")
        self.ask("SELECT pg_reload_conf()")
        assert self.ask("SELECT pg_promote(true, 60)")

    def _answers(self) -> bool:
        with suppress(psycopg.Error):
            return bool(self.ask("SELECT true"))
        return False


class PostgresPair:
    """Two servers; each commit of the primary waits until the standby has it on disk."""

    def __init__(self, folder: Path, hosts: tuple[str, str]) -> None:
        self.primary, self.standby = (PostgresServer(folder / f"pg-{n}", host) for n, host in enumerate(hosts, 1))
        self._servers = (self.primary, self.standby)

    @property
    def url(self) -> str:
        """The present primary, past the network, as its owner."""
        return f"postgresql+psycopg://app@/postgres?host={self.primary.folder}"

    def url_for(self, role: str) -> str:
        """DATABASE_URL with both servers."""
        hosts = ",".join(f"{one.host}:{PORT}" for one in self._servers)
        return f"postgresql://{role}@{hosts}/postgres?target_session_attrs=read-write&sslmode=disable"

    def start(self) -> None:
        """Start both."""
        self.primary.init()
        self.primary.start()
        for _ in self.rejoining():
            os.sched_yield()

    def rejoining(self) -> Iterator[None]:
        """Make the other server the synchronous standby of the primary; yields until commits wait for it."""
        yield from self.standby.copying(self.primary)
        self.primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.ask("SELECT pg_reload_conf()")
        while self.primary.ask("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != 1:
            yield

    def fail_over(self) -> None:
        """Promote the standby of a primary that was killed."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def stop(self) -> None:
        """Kill both."""
        for one in self._servers:
            one.kill()
