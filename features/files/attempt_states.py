"""States of attempts that run, from which the next attempt of a job goes on should their worker be lost.

    attempts/<tenant>/<job>/<epoch>-<number>          the newest state of an attempt; the one before it is removed
    attempts/<tenant>/<job>/<epoch>-<number>.sealed   the same, sealed (``store.seal``)

They lie beside the contents of files, and no row names them: a state costs no statement, and is of no use without its
job. A duty of the API removes those of jobs that run no more.
"""

import hashlib
import io
from contextlib import suppress

from sqlalchemy import text

from headrace.features.files.blob_storage import as_unavailable, open_storage
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen, TooLarge
from headrace.store.jobs.claims import Claim
from headrace.store.seal import Seal
from headrace.store.settings import Settings

MOST_BYTES = 64 << 20
"""Of one state."""

_SEALED = ".sealed"
_DIGEST_BYTES = 32

# Jobs that may have another attempt.
_LIVE = text("SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS text[])) AND state IN ('queued', 'running')")


class AttemptStates:
    """The states of all jobs. Called from many threads at once; calls block."""

    def __init__(self, settings: Settings, seal: Seal) -> None:
        self._fs, root = open_storage(settings)
        self._root = f"{root}/attempts"
        self._seal = seal

    def save(self, claim: Claim, state: bytes) -> None:
        """Store a state of the attempt, and remove all that came before it. Raises TooLarge, Unavailable."""
        if len(state) > MOST_BYTES:
            raise TooLarge(f"a state of {len(state)} bytes: at most {MOST_BYTES} are stored")
        folder = self._folder(claim.tenant_id, claim.job_id)
        with as_unavailable():
            before = self._names(folder)
            own = [number for epoch, number, _ in before if epoch == claim.epoch]
            name = f"{claim.epoch}-{max(own, default=0) + 1}"
            out = io.BytesIO()
            writer = self._seal.file_writer(out)
            # Told from one that was cut off when its worker died.
            writer.write(hashlib.sha256(state).digest() + state)
            writer.end(f"{claim.job_id}/{name}")
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.pipe_file(f"{folder}/{name}{_SEALED if self._seal.is_on else ''}", out.getvalue())
            for epoch, _, path in before:
                if epoch <= claim.epoch:
                    self._remove(path)

    def newest(self, claim: Claim) -> bytes | None:
        """Return the newest state of the attempts before, which the job's version has made; None if there is none.

        Raises Unavailable.
        """
        if claim.epoch == 1:
            return None
        folder = self._folder(claim.tenant_id, claim.job_id)
        for epoch, number, path in sorted(self._names(folder), reverse=True):
            if claim.restarts_after < epoch < claim.epoch:
                state = self._read(path, f"{claim.job_id}/{epoch}-{number}")
                if state is not None:
                    return state
        return None

    def remove_ended(self, db: Database) -> None:
        """Remove the states of jobs that have ended or are gone. Raises Unavailable."""
        with as_unavailable():
            tenants = [_last(path) for path in self._listed(self._root)]
        for tenant_id in tenants:
            with as_unavailable():
                ids = [_last(path) for path in self._listed(f"{self._root}/{tenant_id}")]
            with db.autocommit(tenant_id=tenant_id) as connection:
                live = set(connection.execute(_LIVE, {"ids": ids}).scalars())
            for job_id in set(ids) - live:
                self._remove_all(self._folder(tenant_id, job_id))

    def _remove_all(self, folder: str) -> None:
        with as_unavailable():
            for path in self._listed(folder):
                self._remove(path)
            with suppress(OSError):  # an object storage has no folders
                self._fs.rmdir(folder)

    def _folder(self, tenant_id: str, job_id: str) -> str:
        return f"{self._root}/{tenant_id}/{job_id}"

    def _names(self, folder: str) -> list[tuple[int, int, str]]:
        """Return epoch, number and path of each state of a job."""
        found = []
        with as_unavailable():
            for path in self._listed(folder):
                epoch, _, number = _last(path).removesuffix(_SEALED).partition("-")
                if epoch.isdecimal() and number.isdecimal():
                    found.append((int(epoch), int(number), path))
        return found

    def _listed(self, folder: str) -> list[str]:
        self._fs.invalidate_cache(folder)  # otherwise it returns the first listing again
        try:
            return [path.rstrip("/") for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):  # another process was faster
            self._fs.rm_file(path)

    def _read(self, path: str, name: str) -> bytes | None:
        """Return a state, None for one that is gone, cut off, or does not open."""
        try:
            with as_unavailable():
                try:
                    stored = self._fs.cat_file(path)
                except FileNotFoundError:
                    return None
                if path.endswith(_SEALED):
                    with self._seal.open_file(io.BytesIO(stored), name) as content:
                        stored = content.read()
        except CannotOpen:
            return None
        digest, state = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        return state if hashlib.sha256(state).digest() == digest else None


def _last(path: str) -> str:
    return path.rpartition("/")[2]
