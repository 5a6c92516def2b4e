"""The folder that holds one local stack: what lies where, who may use it, and what a client verb can learn from it.

Knows files only. A stack holds the folder's lock for as long as it lives; the kernel lets go of it when the process
ends, however that happens. While it serves, a pointer to the folder lies in the user's runtime folder, so that verbs
find it from anywhere. A pointer is trusted only where nobody else can have left it, and only while the lock is held.
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

from cli.local.folders import private_folder
from store.errors import SettingsError, Unavailable
from store.settings import Settings, runtime_folder


class StackRecord(BaseModel):
    """What a running stack tells the verbs of other terminals."""

    pid: int = Field(default_factory=os.getpid)
    # Whose tables they are; with roles, each process logs in to it as its own (``store.db.roles``).
    database_url: str
    has_roles: bool = False
    redis_url: str
    api_url: str
    flower_url: str
    models: list[str]


class Home:
    """One HEADRACE_HOME."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def models(self) -> Path:
        """Where fetched and converted models lie, one folder each."""
        return self.path / "models"

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.path / "logs" / f"{name}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; raise Unavailable if another stack does."""
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
        """What the stack that runs, or ran last, wrote down."""
        try:
            return StackRecord.model_validate_json((self.path / "stack.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def running(self) -> StackRecord | None:
        """What the stack that runs now wrote down; None if none runs."""
        return self.record() if self.is_locked() else None

    def write_record(self, record: StackRecord) -> None:
        """Leave word for the verbs. Private, because a given DATABASE_URL may hold a password."""
        self._write_private("stack.json", record.model_dump_json())

    @contextmanager
    def pointed_to(self) -> Iterator[None]:
        """Let verbs find this stack from any folder, for the time of the block, if there is a folder for pointers."""
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
        """The key of the stack's own tenant, for the verbs."""
        return self._read("api-key")

    def write_api_key(self, key: str) -> None:
        """Keep the key; it is shown once and stored nowhere else."""
        self._write_private("api-key", key)

    def flower_password(self) -> str:
        """The password of Flower's page, made at the first call."""
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
    """Return the home of the stack that the settings mean: HEADRACE_HOME, else the one here, else the one that runs.

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
    """Where pointers may lie: in the runtime folder that the system made, else in the folder for temporary files."""
    return [runtime_folder() / "headrace", Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}"]


def _pointers_of_ours() -> Path:
    """Return the first folder that can be used, made if need be. Raises Unavailable or OSError if none can."""
    given, made = _pointer_folders()
    return private_folder(given if _is_private(given.parent) else made, None)


def _is_private(folder: Path) -> bool:
    """True for a folder, no link, of this user's in which nobody else can write."""
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
    """Return the folder that a pointer names, if it is there and this user's."""
    try:
        path = Path(os.fsdecode(pointer.read_bytes()))
        is_ours = path.is_absolute() and path.stat().st_uid == os.geteuid()
    except (OSError, ValueError):
        return None
    return Home(path) if is_ours else None
