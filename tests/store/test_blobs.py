"""One contract for a folder and for what fsspec knows; its memory file system stands in for an object store."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from store import files, keys
from store.blobs import Blobs, FolderBlobs, ObjectBlobs, open_blobs, read_blocks
from store.db import Database
from store.errors import NotFound, SettingsError, Unavailable
from store.files import Purpose
from store.settings import Settings

CONTENT = b"line\n" * 300_000  # more than a block


@pytest.fixture(params=["folder", "objects"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param == "folder":
        yield FolderBlobs(tmp_path)
        return
    yield ObjectBlobs("memory://bucket/files")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def put(blobs: Blobs, content: bytes = CONTENT) -> str:
    draft = blobs.create()
    for start in range(0, len(content), 700_000):
        draft.write(content[start : start + 700_000])
    draft.keep()
    draft.drop()
    assert draft.num_bytes == len(content)
    return draft.digest


class TestContract:
    def test_a_content_lies_under_its_digest(self, blobs: Blobs) -> None:
        digest = put(blobs)
        assert digest == hashlib.sha256(CONTENT).hexdigest() == put(blobs), "twice is as good as once"
        assert b"".join(read_blocks(blobs, digest)) == CONTENT
        with blobs.open(digest) as content:
            content.seek(500_000)
            assert content.readline() == b"line\n"

    def test_what_was_not_kept_is_not_there(self, blobs: Blobs) -> None:
        draft = blobs.create()
        draft.write(b"half")
        with pytest.raises(Unavailable):
            blobs.open(draft.digest)
        draft.drop()
        with pytest.raises(Unavailable):
            blobs.open(draft.digest)

    def test_removing_is_repeatable(self, blobs: Blobs) -> None:
        digest = put(blobs)
        blobs.remove(digest)
        blobs.remove(digest)
        with pytest.raises(Unavailable, match="storage"):
            blobs.open(digest)

    def test_only_what_was_forgotten_is_swept(self, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
        left, kept = blobs.create(), put(blobs)
        left.write(b"its writer has died")
        blobs.sweep()
        monkeypatch.setattr("store.blobs._FORGOTTEN_S", -60.0)
        blobs.sweep()
        with pytest.raises(Unavailable):
            left.keep()
        assert b"".join(read_blocks(blobs, kept)) == CONTENT


def test_the_settings_say_where(tmp_path: Path) -> None:
    assert isinstance(open_blobs(Settings(home=tmp_path)), FolderBlobs)
    assert isinstance(open_blobs(Settings(files_url=f"file://{tmp_path}")), ObjectBlobs)
    with pytest.raises(SettingsError, match="HEADRACE_FILES_URL"):
        open_blobs(Settings(files_url="nosuch://bucket"))


def test_a_content_stays_while_somebody_refers_to_it(db: Database, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    acme, globex = keys.create_tenant(db, "acme"), keys.create_tenant(db, "globex")

    def upload(tenant: str) -> files.File:
        draft = blobs.create()
        draft.write(CONTENT)
        return files.create(db, tenant, draft, filename="a", purpose=Purpose.USER_DATA, most_bytes=1 << 30)

    mine, theirs = upload(acme), upload(globex)
    assert mine.digest == theirs.digest
    with pytest.raises(NotFound):
        files.delete(db, acme, theirs.id, actor="t")
    files.delete(db, acme, mine.id, actor="t")
    assert not files.remove_unreferenced(db, blobs, older_than_s=0)
    files.delete(db, globex, theirs.id, actor="t")
    assert not files.remove_unreferenced(db, blobs), "somebody may be about to refer to it"
    assert files.remove_unreferenced(db, blobs, older_than_s=0)
    with pytest.raises(Unavailable):
        blobs.open(mine.digest)
    assert upload(acme).digest == mine.digest, "and it can come back"
