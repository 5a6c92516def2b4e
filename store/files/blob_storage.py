"""Where contents of files lie, in a folder or in any storage that fsspec knows.

    drafts/<random>         being written; a process that dies leaves one behind, which ``sweep`` removes a day later
    sha256/ab/abcdef…       complete, for it was put there by one rename, and never changed again
    sha256/ab/abcdef….sealed   the same, sealed (``store.encryption.encrypted_files``), as all are that come while there
    is a key

``store.files.files`` gives the names, knows what refers to them, and gives none a second time: so a removal that comes
late, or twice, removes nothing that came meanwhile. A name begins with the content's digest and is bound to what is
sealed.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar
from uuid import uuid4

import fsspec

from store.encryption.encrypted_files import CHUNK_BYTES, SealedReader, SealedWriter, read_header
from store.encryption.vault import Vault
from store.errors import CannotOpen, SettingsError, Unavailable
from store.settings import Settings, open_vault

T = TypeVar("T")

_SEALED = ".sealed"

_BLOCK_BYTES = 1 << 20
_FORGOTTEN_S = 86_400.0


class Blobs(Protocol):
    """A storage of contents. Everything blocks; Unavailable is raised while it is away."""

    def create(self) -> "BlobWriter":
        """Begin a new content; it is not there before it was kept."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a content for reading, with ``seek``; raise Unavailable if it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a content; that it is not there is as good."""
        ...

    def sweep(self) -> None:
        """Remove what was begun more than a day ago and never kept."""
        ...

    def sealed_by(self, name: str) -> str | None:
        """Return the id of the master key that a content is sealed under, None if it is not sealed."""
        ...


class BlobWriter:
    """A content that is being written. ``keep`` puts it in its place; ``drop`` removes it, kept or not begun.

    ``name`` is what it was kept as.
    """

    def __init__(
        self,
        out: BinaryIO,
        sync: Callable[[], None],
        move: Callable[[str], None],
        drop: Callable[[], None],
        vault: Vault,
    ) -> None:
        self._out = SealedWriter(out, vault) if vault.is_on else out
        self._sync = sync
        self._move = move
        self._drop = drop
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.name = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far, in hex."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        """Append."""
        with _told_plainly():
            self._out.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)

    def keep(self, name: str) -> None:
        """Put the content there under this name; it is on disk then."""
        with _told_plainly():
            if isinstance(self._out, SealedWriter):
                self._out.end(name)
            self._sync()
            self._move(name)
        self.name = name

    def drop(self) -> None:
        """Forget what was written, unless it was kept."""
        with suppress(OSError):
            self._drop()


class FolderBlobs:
    """Contents in a folder, perhaps one that several machines share."""

    def __init__(self, folder: Path, vault: Vault | None = None) -> None:
        self._folder = folder
        self._vault = vault or Vault()

    def create(self) -> BlobWriter:
        """See ``Blobs``."""
        with _told_plainly():
            path = self._folder / "drafts" / uuid4().hex
            path.parent.mkdir(parents=True, exist_ok=True)
            out = path.open("wb")

        def sync() -> None:
            out.flush()
            os.fsync(out.fileno())
            out.close()

        def move(name: str) -> None:
            target, other = self._paths(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            other.unlink(missing_ok=True)
            _sync_folder(target.parent)

        def drop() -> None:
            out.close()
            path.unlink(missing_ok=True)

        return BlobWriter(out, sync, move, drop, self._vault)

    def open(self, name: str) -> BinaryIO:
        """See ``Blobs``."""
        with _told_plainly():
            path = self._found(name)
            return _opened(path.open("rb"), self._vault, name, is_sealed=path.suffix == _SEALED)

    def sealed_by(self, name: str) -> str | None:
        """See ``Blobs``."""
        with _told_plainly():
            path = self._found(name)
            if path.suffix != _SEALED:
                return None
            with path.open("rb") as content:
                return read_header(content, name)["k"]

    def remove(self, name: str) -> None:
        """See ``Blobs``."""
        with _told_plainly():
            for path in self._paths(name):
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """See ``Blobs``."""
        with _told_plainly():
            for path in (self._folder / "drafts").glob("*"):
                with suppress(FileNotFoundError):  # kept or dropped at this moment
                    if _is_forgotten(path.stat().st_mtime):
                        path.unlink()

    def _found(self, name: str) -> Path:
        first, second = self._paths(name)
        return first if first.exists() else second

    def _paths(self, name: str) -> tuple[Path, Path]:
        """Return where a content is put now, and where it lies if it came when there were keys, or were none."""
        plain = self._folder / "sha256" / name[:2] / name
        return _in_order(self._vault, plain, plain.with_name(f"{name}{_SEALED}"))


class ObjectBlobs:
    """Contents in a storage of fsspec's, such as ``s3://bucket/prefix``, which shows an object whole or not at all."""

    def __init__(self, url: str, vault: Vault | None = None) -> None:
        self._vault = vault or Vault()
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"HEADRACE_FILES_URL: {error}") from error
        self._root = root.rstrip("/")

    def create(self) -> BlobWriter:
        """See ``Blobs``."""
        place = f"{self._root}/drafts/{uuid4().hex}"
        with _told_plainly():
            self._fs.makedirs(f"{self._root}/drafts", exist_ok=True)
            out = self._fs.open(place, "wb")

        def move(name: str) -> None:
            target, other = self._places(name)
            self._fs.makedirs(f"{self._root}/sha256/{name[:2]}", exist_ok=True)
            self._fs.mv(place, target)
            with suppress(FileNotFoundError):
                self._fs.rm_file(other)

        def drop() -> None:
            out.close()
            if self._fs.exists(place):
                self._fs.rm_file(place)

        return BlobWriter(out, out.close, move, drop, self._vault)

    def open(self, name: str) -> BinaryIO:
        """See ``Blobs``."""
        with _told_plainly():
            place = self._found(name)
            # What fsspec opens cannot read at most so much of a line.
            content = io.BufferedReader(self._fs.open(place, "rb"))
            return _opened(content, self._vault, name, is_sealed=place.endswith(_SEALED))

    def sealed_by(self, name: str) -> str | None:
        """See ``Blobs``."""
        with _told_plainly():
            place = self._found(name)
            if not place.endswith(_SEALED):
                return None
            with self._fs.open(place, "rb") as content:
                return read_header(content, name)["k"]

    def remove(self, name: str) -> None:
        """See ``Blobs``."""
        for place in self._places(name):
            with _told_plainly(), suppress(FileNotFoundError):
                self._fs.rm_file(place)

    def sweep(self) -> None:
        """See ``Blobs``."""
        with _told_plainly():
            self._fs.invalidate_cache()  # or it shows what was there when it was first asked
            for place in self._fs.glob(f"{self._root}/drafts/*"):
                with suppress(FileNotFoundError):  # kept or dropped at this moment
                    if _is_forgotten(float(self._fs.modified(place).timestamp())):
                        self._fs.rm_file(place)

    def _found(self, name: str) -> str:
        first, second = self._places(name)
        return first if self._fs.exists(first) else second

    def _places(self, name: str) -> tuple[str, str]:
        plain = f"{self._root}/sha256/{name[:2]}/{name}"
        return _in_order(self._vault, plain, f"{plain}{_SEALED}")


def open_blobs(settings: Settings) -> Blobs:
    """Return the storage that the settings name; raise SettingsError if there is no such kind, or for bad keys."""
    vault = open_vault(settings)
    if settings.files_url:
        return ObjectBlobs(settings.files_url, vault)
    return FolderBlobs(settings.home / "files", vault)


def read_blocks(blobs: Blobs, name: str) -> Iterator[bytes]:
    """Yield a content piece by piece. Raises Unavailable."""
    with blobs.open(name) as content:
        while True:
            with _told_plainly():
                block = content.read(_BLOCK_BYTES)
            if not block:
                return
            yield block


def _in_order(vault: Vault, plain: T, sealed: T) -> tuple[T, T]:
    return (sealed, plain) if vault.is_on else (plain, sealed)


def _opened(content: BinaryIO, vault: Vault, name: str, *, is_sealed: bool) -> BinaryIO:
    if not is_sealed:
        return content
    try:
        return io.BufferedReader(SealedReader(content, vault, name), CHUNK_BYTES)
    except CannotOpen:
        content.close()
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename last: the folder's entry is data of the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_forgotten(modified_at: float) -> bool:
    # Of files, whose times are the wall clock's; nothing else is compared with it.
    return modified_at < time.time() - _FORGOTTEN_S  # noqa: TID251


@contextmanager
def _told_plainly() -> Iterator[None]:
    try:
        yield
    except CannotOpen:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Unavailable(f"the file storage is not available: {reason}", code="storage_unavailable") from error
