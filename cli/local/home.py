"""The home folder of one local stack: its files, its lock, and the connection data for client commands.

A stack holds the folder's lock while it runs; the kernel releases it when the process ends. While the stack serves, a
pointer to the folder is in the user's runtime folder, so that commands find it from any folder. A pointer is trusted
only in a folder that other users cannot write to, and only while the lock is held.
"""

import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from headrace.cli.local.folders import private_folder
from headrace.store.errors import SettingsError, Unavailable
from headrace.store.settings import Settings, runtime_folder


class StackRecord(BaseModel):
    """Connection data of a running stack for commands in other terminals."""

    pid: int = Field(default_factory=os.getpid)
    # The owner of the tables; with roles, each process logs in to it as its own (``store.db.roles``).
    database_url: str
    has_roles: bool = False
    redis_url: str
    api_url: str
    flower_url: str
    models: list[str]


class Home:
    """One home folder (HEADRACE_HOME)."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def models(self) -> Path:
        """Folder of fetched and converted models."""
        return self.path / "models"

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.path / "logs" / f"{name}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder. Raises Unavailable if another stack has locked it."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"HEADRACE_HOME {self.path} cannot be used: {error.strerror}") from error
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                record = self.record()
                who = f" (pid {record.pid}, API at {record.api_url})" if record else ""
                raise Unavailable(f"another stack{who} is already running on {self.path}: stop it first") from error
            # The stack that wrote it has ended: it must not be taken for this one, which has no address yet.
            (self.path / "stack.json").unlink(missing_ok=True)
            yield

    def is_locked(self) -> bool:
        """True while a stack runs on this folder."""
        try:
            with (self.path / "lock").open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def record(self) -> StackRecord | None:
        """Connection data of the stack that runs or ran last."""
        try:
            return StackRecord.model_validate_json((self.path / "stack.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def running(self) -> StackRecord | None:
        """Connection data of the running stack; None if none runs."""
        return self.record() if self.is_locked() else None

    def write_record(self, record: StackRecord) -> None:
        """Write the connection data for commands, in a private file: DATABASE_URL may contain a password."""
        self._write_private("stack.json", record.model_dump_json())

    @contextmanager
    def pointed_to(self) -> Iterator[None]:
        """Write a pointer to this stack for the time of the block, if there is a folder for pointers."""
        pointer = None
        with suppress(OSError, Unavailable):
            folder = _pointers_of_ours()
            for stale in folder.iterdir():
                if (home := _home_of(stale)) is None or not home.is_locked():
                    stale.unlink(missing_ok=True)
            pointer = folder / hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
            pointer.write_bytes(os.fsencode(self.path))
        try:
            yield
        finally:
            if pointer is not None:
                pointer.unlink(missing_ok=True)

    def api_key(self) -> str | None:
        """The API key of the stack's tenant, for commands."""
        return self._read("api-key")

    def write_api_key(self, key: str) -> None:
        """Store the key. It is shown once and stored nowhere else."""
        self._write_private("api-key", key)

    def flower_password(self) -> str:
        """The password of Flower's page, created at the first call."""
        password = self._read("flower-password")
        if password is None:
            password = secrets.token_urlsafe(12)
            self._write_private("flower-password", password)
        return password

    def _read(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text().strip() or None
        except OSError:
            return None

    def _write_private(self, name: str, content: str) -> None:
        target = self.path / name
        draft = target.with_name(f"{name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)
        draft.rename(target)


def find_home(settings: Settings) -> Home:
    """Return the home of the selected stack: HEADRACE_HOME, else the one in this folder, else the running one.

    Raises SettingsError if several run elsewhere.
    """
    own = Home(settings.home)
    if "home" in settings.model_fields_set or own.is_locked():
        return own
    found = {home.path: home for folder in _pointer_folders() for home in _pointed_to(folder) if home.is_locked()}
    if len(found) > 1:
        names = ", ".join(str(path) for path in sorted(found))
        raise SettingsError(f"several stacks of yours are running, in {names}: say which with HEADRACE_HOME")
    return next(iter(found.values()), own)


def _pointer_folders() -> list[Path]:
    """Folders for pointers: the user's runtime folder, else one in the folder for temporary files."""
    return [runtime_folder() / "headrace", Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}"]


def _pointers_of_ours() -> Path:
    """Return the first usable folder, and create it if necessary. Raises Unavailable or OSError if there is none."""
    given, made = _pointer_folders()
    return private_folder(given if _is_private(given.parent) else made, None)


def _is_private(folder: Path) -> bool:
    """True for a folder (no link) of this user that no other user can write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _pointed_to(folder: Path) -> Iterator[Home]:
    if _is_private(folder):
        with suppress(OSError):
            yield from (home for pointer in sorted(folder.iterdir()) if (home := _home_of(pointer)))


def _home_of(pointer: Path) -> Home | None:
    """Return the folder that a pointer names, if it exists and belongs to this user."""
    try:
        path = Path(os.fsdecode(pointer.read_bytes()))
        is_ours = path.is_absolute() and path.stat().st_uid == os.geteuid()
    except (OSError, ValueError):
        return None
    return Home(path) if is_ours else None
