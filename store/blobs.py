"""Where files lie: contents under their digest, in a folder or in any storage that fsspec knows. Knows no file's name.

    drafts/<random>         being written; whoever dies leaves one behind, which ``sweep`` removes a day later
    sha256/ab/abcdef…       complete, for it was put there by one rename, and never changed again

The same content is stored once, whoever brings it. Who refers to it is ``store.files``' to know.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

import fsspec

from store.errors import SettingsError, Unavailable
from store.settings import Settings

_BLOCK_BYTES = 1 << 20
_FORGOTTEN_S = 86_400.0


class Blobs(Protocol):
    """A storage of contents. Everything blocks; Unavailable is raised while it is away."""

    def create(self) -> "Draft":
        """Begin a new content; it is not there before it was kept."""
        ...

    def open(self, digest: str) -> BinaryIO:
        """Open a content for reading, with ``seek``; raise Unavailable if it is not there."""
        ...

    def remove(self, digest: str) -> None:
        """Remove a content; that it is not there is as good."""
        ...

    def sweep(self) -> None:
        """Remove what was begun more than a day ago and never kept."""
        ...


class Draft:
    """A content that is being written. ``keep`` puts it under its digest; ``drop`` removes it, kept or not begun."""

    def __init__(self, out: BinaryIO, sync: Callable[[], None], move: Callable[[str], None], drop: Callable[[], None]):
        self._out = out
        self._sync = sync
        self._move = move
        self._drop = drop
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0

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

    def keep(self) -> None:
        """Put the content under its digest; it is on disk then."""
        with _told_plainly():
            self._sync()
            self._move(self.digest)

    def drop(self) -> None:
        """Forget what was written, unless it was kept."""
        with suppress(OSError):
            self._drop()


class FolderBlobs:
    """Contents in a folder, perhaps one that several machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> Draft:
        """See ``Blobs``."""
        with _told_plainly():
            path = self._folder / "drafts" / uuid4().hex
            path.parent.mkdir(parents=True, exist_ok=True)
            out = path.open("wb")

        def sync() -> None:
            out.flush()
            os.fsync(out.fileno())
            out.close()

        def move(digest: str) -> None:
            target = self._path(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            _sync_folder(target.parent)

        def drop() -> None:
            out.close()
            path.unlink(missing_ok=True)

        return Draft(out, sync, move, drop)

    def open(self, digest: str) -> BinaryIO:
        """See ``Blobs``."""
        with _told_plainly():
            return self._path(digest).open("rb")

    def remove(self, digest: str) -> None:
        """See ``Blobs``."""
        with _told_plainly():
            self._path(digest).unlink(missing_ok=True)

    def sweep(self) -> None:
        """See ``Blobs``."""
        with _told_plainly():
            for path in (self._folder / "drafts").glob("*"):
                with suppress(FileNotFoundError):  # kept or dropped at this moment
                    if _is_forgotten(path.stat().st_mtime):
                        path.unlink()

    def _path(self, digest: str) -> Path:
        return self._folder / "sha256" / digest[:2] / digest


class ObjectBlobs:
    """Contents in a storage of fsspec's, such as ``s3://bucket/prefix``, which shows an object whole or not at all."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"HEADRACE_FILES_URL: {error}") from error
        self._root = root.rstrip("/")

    def create(self) -> Draft:
        """See ``Blobs``."""
        name = f"{self._root}/drafts/{uuid4().hex}"
        with _told_plainly():
            self._fs.makedirs(f"{self._root}/drafts", exist_ok=True)
            out = self._fs.open(name, "wb")

        def move(digest: str) -> None:
            self._fs.makedirs(f"{self._root}/sha256/{digest[:2]}", exist_ok=True)
            self._fs.mv(name, self._name(digest))

        def drop() -> None:
            out.close()
            if self._fs.exists(name):
                self._fs.rm_file(name)

        return Draft(out, out.close, move, drop)

    def open(self, digest: str) -> BinaryIO:
        """See ``Blobs``."""
        with _told_plainly():
            opened: BinaryIO = self._fs.open(self._name(digest), "rb")
            return opened

    def remove(self, digest: str) -> None:
        """See ``Blobs``."""
        with _told_plainly(), suppress(FileNotFoundError):
            self._fs.rm_file(self._name(digest))

    def sweep(self) -> None:
        """See ``Blobs``."""
        with _told_plainly():
            for name in self._fs.glob(f"{self._root}/drafts/*"):
                if _is_forgotten(float(self._fs.modified(name).timestamp())):
                    self._fs.rm_file(name)

    def _name(self, digest: str) -> str:
        return f"{self._root}/sha256/{digest[:2]}/{digest}"


def open_blobs(settings: Settings) -> Blobs:
    """Return the storage that the settings name; raise SettingsError if there is no such kind."""
    if settings.files_url:
        return ObjectBlobs(settings.files_url)
    return FolderBlobs(settings.home / "files")


def read_blocks(blobs: Blobs, digest: str) -> Iterator[bytes]:
    """Yield a content piece by piece. Raises Unavailable."""
    with blobs.open(digest) as content:
        while True:
            with _told_plainly():
                block = content.read(_BLOCK_BYTES)
            if not block:
                return
            yield block


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
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Unavailable(f"the file storage is not available: {reason}", code="storage_unavailable") from error
