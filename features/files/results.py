"""Files that jobs make. Each is a file of the tenant like any other, so a next job can name it, and quotas, retention
and encryption hold for it. Besides it is found by its job and its number there, and goes with the job's output.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Connection, text

from headrace.features.files import files
from headrace.features.files.attempt_states import AttemptStates
from headrace.features.files.blob_storage import Blobs, BlobWriter, open_blobs, read_blocks
from headrace.features.files.files import Purpose
from headrace.features.files.result_links import MOST_FILES
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, TooLarge, Unavailable
from headrace.store.failpoints import failpoint
from headrace.store.ids import new_id
from headrace.store.jobs.claims import Claim
from headrace.store.jobs.job_rows import EndRows
from headrace.store.seal import Seal
from headrace.store.settings import Settings
from headrace.workers.runs.result_files import OpenDrafts, ResultsPart

_NAME = re.compile(r"[^\x00-\x1f\x7f/\\\ud800-\udfff]{1,255}")
_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")

# Adds the files of a job, those whose contents are not marked for removal.
_ADD = text("""
WITH made AS (
    SELECT * FROM jsonb_to_recordset(CAST(:made AS jsonb))
        AS one (id varchar, position int, digest varchar, num_bytes bigint, filename varchar, media_type varchar)
), kept AS (
    SELECT digest FROM blobs WHERE digest IN (SELECT digest FROM made) AND removed_at IS NULL ORDER BY digest FOR SHARE
)
INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose, result_of, position, media_type)
SELECT id, :tenant_id, digest, num_bytes, filename, :purpose, :job_id, position, media_type
FROM made JOIN kept USING (digest)
""")


@dataclass(frozen=True, slots=True)
class _Draft:
    id: str
    name: str
    media_type: str
    facts: dict[str, Any]
    writer: BlobWriter


@dataclass(frozen=True, slots=True)
class _ResultRows(EndRows):
    """The rows of the files of one job. Raises Unavailable if a content is gone, which ``files`` keeps ten minutes."""

    tenant_id: str
    job_id: str
    made: Sequence[dict[str, Any]]

    def write(self, connection: Connection, _seal: Seal) -> None:
        """Insert them."""
        values = {"tenant_id": self.tenant_id, "job_id": self.job_id, "purpose": Purpose.JOB_OUTPUT}
        encoded = orjson.dumps(list(self.made)).decode()
        if connection.execute(_ADD, {**values, "made": encoded}).rowcount != len(self.made):
            raise Unavailable("a file was removed before its job ended", code="storage_unavailable")


@dataclass(slots=True)
class Drafts:
    """A ``ResultDrafts``."""

    blobs: Blobs
    db: Database
    settings: Settings
    claim: Claim
    states: AttemptStates
    drafts: list[_Draft] = field(default_factory=list)

    def add(self, name: str, content: bytes, media_type: str, facts: dict[str, Any]) -> None:
        """See ``ResultDrafts``."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidRequest("the name of a file has 1 to 255 characters, and no slash or control character")
        if not isinstance(media_type, str) or not _TYPE.fullmatch(media_type):
            raise InvalidRequest("the media type of a file is one such as image/png")
        if len(self.drafts) >= MOST_FILES:
            raise InvalidRequest(f"a job makes at most {MOST_FILES} files")
        if len(content) > self.settings.max_file_bytes:
            raise TooLarge(f"a file of {len(content)} bytes: at most {self.settings.max_file_bytes} are accepted")
        held = sum(one.writer.num_bytes for one in self.drafts)
        with self.db.autocommit(tenant_id=self.claim.tenant_id) as connection:
            most = self.settings.tenant_stored_bytes
            files.check_quota(connection, self.claim.tenant_id, held + len(content), most)
        writer = self.blobs.create()
        self.drafts.append(_Draft(new_id("file"), name, media_type, facts, writer))
        writer.write(content)

    def keep(self) -> tuple[Sequence[dict[str, Any]], EndRows]:
        """See ``ResultDrafts``."""
        made, shown = [], []
        for position, one in enumerate(self.drafts):
            files.keep_content(self.db, one.writer)
            num_bytes, digest = one.writer.num_bytes, one.writer.name
            row = {"id": one.id, "position": position, "digest": digest, "num_bytes": num_bytes}
            made.append(row | {"filename": one.name, "media_type": one.media_type})
            shown.append(
                {
                    "id": one.id,
                    "name": one.name,
                    "media_type": one.media_type,
                    "bytes": num_bytes,
                    "sha256": one.writer.digest,
                    **one.facts,
                    "url": f"/v1/jobs/{self.claim.job_id}/files/{position}",
                }
            )
        failpoint("result.kept")
        return shown, _ResultRows(self.claim.tenant_id, self.claim.job_id, made)

    def drop(self) -> None:
        """See ``ResultDrafts``."""
        for one in self.drafts:
            if not one.writer.name:
                one.writer.drop()
        self.drafts.clear()

    def read(self, file_id: str) -> bytes:
        """See ``ResultDrafts``."""
        file = files.get(self.db, self.claim.tenant_id, file_id)
        if file.num_bytes > self.settings.max_file_bytes:
            raise TooLarge(f"the file {file_id} has {file.num_bytes} bytes")
        return b"".join(read_blocks(self.blobs, file.digest))

    def save_state(self, state: bytes) -> None:
        """See ``ResultDrafts``."""
        self.states.save(self.claim, state)

    def saved_state(self) -> bytes | None:
        """See ``ResultDrafts``."""
        return self.states.newest(self.claim)


def _open(settings: Settings, db: Database) -> OpenDrafts:
    blobs, states = open_blobs(settings, db.seal), AttemptStates(settings, db.seal)

    def drafts(db: Database, claim: Claim) -> Drafts:
        return Drafts(blobs, db, settings, claim, states)

    return drafts


PART = ResultsPart(_open)
