"""Blob storage for the contents of files: a folder, or any storage that fsspec supports.

    drafts/<random>            being written; ``sweep`` removes the draft of a dead process after a day
    sha256/ab/abcdef…          complete: renamed into path once, and never changed
    sha256/ab/abcdef….sealed   the same, sealed (``store.seal``)

``features.files.files`` chooses the names and knows their references. A name is never reused, so a late or repeated
removal cannot remove a newer content. A name starts with the content's digest, and its seal is bound to it.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from uuid import uuid4

import fsspec

from headrace.store.db.seal_part import open_seal
from headrace.store.errors import CannotOpen, SettingsError, Unavailable
from headrace.store.seal import PLAIN, Seal
from headrace.store.settings import Settings

T = TypeVar("T")

_SEALED = ".sealed"

_BLOCK_BYTES = 1 << 20
ABANDONED_S = 86_400.0


class Blobs(Protocol):
    """A blob storage. All calls block, and raise Unavailable if the storage does not answer."""

    def create(self) -> "BlobWriter":
        """Start a new content. It is visible only after ``keep``."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a content for reading, with ``seek``. Raises Unavailable if it does not exist."""
        ...

    def remove(self, name: str) -> None:
        """Remove a content, if it exists."""
        ...

    def sweep(self) -> None:
        """Remove drafts older than a day."""
        ...

    def open_stored(self, name: str) -> tuple[BinaryIO, bool]:
        """Return a content as it is stored, open for reading, and True if it is sealed. See ``open``."""
        ...


class BlobWriter:
    """Writes a content. ``keep`` stores it under a name; ``drop`` removes the draft.

    ``name`` is set by ``keep``.
    """

    def __init__(
        self,
        out: BinaryIO,
        sync: Callable[[], None],
        move: Callable[[str], None],
        drop: Callable[[], None],
        seal: Seal,
    ) -> None:
        self._out = seal.file_writer(out)
        self._sync = sync
        self._move = move
        self._drop = drop
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.name = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the data written so far, in hex."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        """Append."""
        with as_unavailable():
            self._out.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)

    def keep(self, name: str) -> None:
        """Store the content under this name, durably."""
        with as_unavailable():
            self._out.end(name)
            self._sync()
            self._move(name)
        self.name = name

    def drop(self) -> None:
        """Remove the draft, unless it was kept."""
        with suppress(OSError):
            self._drop()


class FolderBlobs:
    """Contents in a folder, which several machines may share."""

    def __init__(self, folder: Path, seal: Seal = PLAIN) -> None:
        self._folder = folder
        self._seal = seal

    def create(self) -> BlobWriter:
        """See ``Blobs``."""
        with as_unavailable():
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

        return BlobWriter(out, sync, move, drop, self._seal)

    def open(self, name: str) -> BinaryIO:
        """See ``Blobs``."""
        return _opened(*self.open_stored(name), self._seal, name)

    def open_stored(self, name: str) -> tuple[BinaryIO, bool]:
        """See ``Blobs``."""
        with as_unavailable():
            path = self._found(name)
            return path.open("rb"), path.suffix == _SEALED

    def remove(self, name: str) -> None:
        """See ``Blobs``."""
        with as_unavailable():
            for path in self._paths(name):
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """See ``Blobs``."""
        with as_unavailable():
            for path in (self._folder / "drafts").glob("*"):
                with suppress(FileNotFoundError):  # kept or dropped meanwhile
                    if _is_abandoned(path.stat().st_mtime):
                        path.unlink()

    def _found(self, name: str) -> Path:
        first, second = self._paths(name)
        return first if first.exists() else second

    def _paths(self, name: str) -> tuple[Path, Path]:
        """Return the current path of a content, and the path it has if it was stored with keys (or without)."""
        plain = self._folder / "sha256" / name[:2] / name
        return _in_order(self._seal, plain, plain.with_name(f"{name}{_SEALED}"))


class ObjectBlobs:
    """Contents in an fsspec storage, such as ``s3://bucket/prefix``, in which an object appears completely or not."""

    def __init__(self, url: str, seal: Seal = PLAIN) -> None:
        self._seal = seal
        self._fs, self._root = _file_system(url)

    def create(self) -> BlobWriter:
        """See ``Blobs``."""
        path = f"{self._root}/drafts/{uuid4().hex}"
        with as_unavailable():
            self._fs.makedirs(f"{self._root}/drafts", exist_ok=True)
            out = self._fs.open(path, "wb")

        def move(name: str) -> None:
            target, other = self._paths(name)
            self._fs.makedirs(f"{self._root}/sha256/{name[:2]}", exist_ok=True)
            self._fs.mv(path, target)
            with suppress(FileNotFoundError):
                self._fs.rm_file(other)

        def drop() -> None:
            out.close()
            if self._fs.exists(path):
                self._fs.rm_file(path)

        return BlobWriter(out, out.close, move, drop, self._seal)

    def open(self, name: str) -> BinaryIO:
        """See ``Blobs``."""
        return _opened(*self.open_stored(name), self._seal, name)

    def open_stored(self, name: str) -> tuple[BinaryIO, bool]:
        """See ``Blobs``."""
        with as_unavailable():
            path = self._found(name)
            # A buffered reader, because files of fsspec have no ``readline`` with a limit.
            return io.BufferedReader(self._fs.open(path, "rb")), path.endswith(_SEALED)

    def remove(self, name: str) -> None:
        """See ``Blobs``."""
        for path in self._paths(name):
            with as_unavailable(), suppress(FileNotFoundError):
                self._fs.rm_file(path)

    def sweep(self) -> None:
        """See ``Blobs``."""
        with as_unavailable():
            self._fs.invalidate_cache()  # otherwise it returns the first listing again
            for path in self._fs.glob(f"{self._root}/drafts/*"):
                with suppress(FileNotFoundError):  # kept or dropped meanwhile
                    if _is_abandoned(float(self._fs.modified(path).timestamp())):
                        self._fs.rm_file(path)

    def _found(self, name: str) -> str:
        first, second = self._paths(name)
        return first if self._fs.exists(first) else second

    def _paths(self, name: str) -> tuple[str, str]:
        plain = f"{self._root}/sha256/{name[:2]}/{name}"
        return _in_order(self._seal, plain, f"{plain}{_SEALED}")


def open_blobs(settings: Settings, seal: Seal | None = None) -> Blobs:
    """Return the storage of the settings, with their seal if none is given.

    Raises SettingsError for an unknown kind, or for malformed keys.
    """
    seal = open_seal(settings) if seal is None else seal
    if settings.files_url:
        return ObjectBlobs(settings.files_url, seal)
    return FolderBlobs(settings.home / "files", seal)


def open_storage(settings: Settings) -> tuple[Any, str]:
    """Return the fsspec file system with the storage of the settings, and its path there. Raises SettingsError."""
    return _file_system(settings.files_url or str(settings.home.absolute() / "files"))


def _file_system(url: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"HEADRACE_FILES_URL: {error}") from error
    return fs, root.rstrip("/")


def read_blocks(blobs: Blobs, name: str) -> Iterator[bytes]:
    """Yield a content in blocks. Raises Unavailable."""
    return read_range(blobs, name, 0, None)


def read_range(blobs: Blobs, name: str, first: int, end: int | None) -> Iterator[bytes]:
    """Yield the bytes of a content from ``first`` to before ``end`` in blocks. Raises Unavailable."""
    with blobs.open(name) as content:
        at = first
        with as_unavailable():
            content.seek(first)
        while end is None or at < end:
            with as_unavailable():
                block = content.read(_BLOCK_BYTES if end is None else min(_BLOCK_BYTES, end - at))
            if not block:
                return
            at += len(block)
            yield block


def _in_order(seal: Seal, plain: T, sealed: T) -> tuple[T, T]:
    return (sealed, plain) if seal.is_on else (plain, sealed)


def _opened(content: BinaryIO, is_sealed: bool, seal: Seal, name: str) -> BinaryIO:
    if not is_sealed:
        return content
    try:
        with as_unavailable():
            return seal.open_file(content, name)
    except (CannotOpen, Unavailable):
        content.close()
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the name is data of the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(modified_at: float) -> bool:
    # Times of files are those of the wall clock.
    return modified_at < time.time() - ABANDONED_S  # noqa: TID251


@contextmanager
def as_unavailable() -> Iterator[None]:
    """Raise errors of the storage as Unavailable, except CannotOpen."""
    try:
        yield
    except CannotOpen:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Unavailable(f"the file storage is not available: {reason}", code="storage_unavailable") from error
