"""One contract for a folder and for what fsspec knows: its memory file system and, with ``--s3``, an S3 server."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest

from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, FolderBlobs, ObjectBlobs, open_blobs, read_blocks
from headrace.features.files.files import Purpose
from headrace.store.db.database import Database
from headrace.store.errors import NotFound, SettingsError, Unavailable
from headrace.store.seal import PLAIN, Seal
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.sealing import TurnedSeal

CONTENT = b"line\n" * 300_000  # more than a block


LARGE = b"line\n" * 11_000_000  # more than s3fs uploads at once


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "opens" in metafunc.fixturenames:
        with_s3 = ["s3"] if metafunc.config.getoption("--s3") else []
        metafunc.parametrize("opens", ["folder", "objects", *with_s3], indirect=True)


@pytest.fixture
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Blobs]]:
    """A storage, opened anew by each call, as by each of several processes."""
    match request.param:
        case "folder":
            yield lambda: FolderBlobs(tmp_path)
        case "objects":
            yield lambda: ObjectBlobs("memory://bucket/files")
            fsspec.filesystem("memory").rm("/bucket", recursive=True)
        case "s3":
            url = request.getfixturevalue("s3_url")

            def open_s3() -> Blobs:
                # fsspec gives each caller in a process the same, with the listings that it keeps.
                fsspec.get_filesystem_class("s3").clear_instance_cache()
                return ObjectBlobs(url)

            yield open_s3


@pytest.fixture
def blobs(opens: Callable[[], Blobs]) -> Blobs:
    return opens()


def put(blobs: Blobs, content: bytes = CONTENT) -> str:
    draft = blobs.create()
    for start in range(0, len(content), 700_000):
        draft.write(content[start : start + 700_000])
    draft.keep(draft.digest)
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
            assert content.readline(3) == b"lin", "so far as one looks for the end of a line"
            assert content.tell() == 500_008

    def test_a_large_content_comes_back_whole(self, blobs: Blobs) -> None:
        assert b"".join(read_blocks(blobs, put(blobs, LARGE))) == LARGE

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

    def test_only_what_was_forgotten_is_swept(
        self, blobs: Blobs, opens: Callable[[], Blobs], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keeper, left, kept = opens(), [], put(blobs)
        for _ in range(2):  # the second comes after the keeper has looked
            left.append(blobs.create())
            left[-1].write(b"its writer dies before it is put in its place")
            left[-1]._sync()
            keeper.sweep()
        left[0]._move(left[0].digest)
        left.append(blobs.create())
        left[-1].write(b"and this one as well")
        left[-1]._sync()
        monkeypatch.setattr("headrace.features.files.blob_storage.ABANDONED_S", -60.0)
        keeper.sweep()
        for draft in left[1:]:
            with pytest.raises(FileNotFoundError):
                draft._move(draft.digest)
        assert b"".join(read_blocks(blobs, kept)) == CONTENT


def test_what_was_stored_before_there_were_keys_is_removed_with_them(tmp_path: Path) -> None:
    for storage in (partial(FolderBlobs, tmp_path), partial(ObjectBlobs, f"memory://{tmp_path.name}")):
        digest = put(storage())
        storage(TurnedSeal("k1")).remove(digest)
        with pytest.raises(Unavailable):
            storage().open(digest)


def test_the_settings_say_where(tmp_path: Path) -> None:
    local = open_blobs(Settings(home=tmp_path))
    assert isinstance(local, FolderBlobs)
    local.create().drop()
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["drafts"]
    assert isinstance(open_blobs(Settings(files_url=f"file://{tmp_path}")), ObjectBlobs)
    with pytest.raises(SettingsError, match="HEADRACE_FILES_URL"):
        open_blobs(Settings(files_url="nosuch://bucket"))


def test_a_content_stays_while_somebody_refers_to_it(db: Database, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    acme, globex = api_keys.create_tenant(db, "acme"), api_keys.create_tenant(db, "globex")
    mine, theirs = upload(db, blobs, acme), upload(db, blobs, globex)
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
    again = upload(db, blobs, acme)
    assert b"".join(read_blocks(blobs, again.digest)) == CONTENT, "and it can come back"


def upload(db: Database, blobs: Blobs, tenant: str, content: bytes = CONTENT) -> files.File:
    draft = blobs.create()
    draft.write(content)
    return files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=1 << 30)


@pytest.mark.parametrize("seal", [PLAIN, TurnedSeal("k1")], ids=["plain", "sealed"])
def test_a_removal_that_comes_late_leaves_what_came_again(db: Database, tmp_path: Path, seal: Seal) -> None:
    """As of a process that was stopped before it asks the storage, or of a storage that does it when it likes."""
    tenant, again = api_keys.create_tenant(db, "acme"), []

    class Late(FolderBlobs):
        def remove(self, name: str) -> None:
            again.append(upload(db, self, tenant))
            super().remove(name)
            super().remove(name)

    blobs = Late(tmp_path, seal)
    files.delete(db, tenant, upload(db, blobs, tenant).id, actor="t")
    assert files.remove_unreferenced(db, blobs, older_than_s=0) == 1
    assert b"".join(read_blocks(blobs, again[0].digest)) == CONTENT
    assert files.remove_unreferenced(db, blobs, older_than_s=0) == 0
    assert upload(db, blobs, tenant).digest == again[0].digest, "the same content is stored once"


def test_contents_are_removed_in_pieces_and_after_a_failure_again(db: Database, tmp_path: Path) -> None:
    tenant, is_away = api_keys.create_tenant(db, "acme"), True

    class Away(FolderBlobs):
        def remove(self, name: str) -> None:
            if is_away:
                raise Unavailable("the storage is away", code="storage_unavailable")
            super().remove(name)

    blobs = Away(tmp_path)
    kept, *gone = [upload(db, blobs, tenant, b"%d" % number) for number in range(6)]
    for file in gone:
        files.delete(db, tenant, file.id, actor="t")
    with pytest.raises(Unavailable):
        files.remove_unreferenced(db, blobs, older_than_s=0, limit=2)
    is_away = False
    removed = [files.remove_unreferenced(db, blobs, older_than_s=0, limit=2) for _ in range(4)]
    assert removed == [2, 2, 1, 0]
    assert [path.name for path in (tmp_path / "sha256").rglob("*") if path.is_file()] == [kept.digest]
