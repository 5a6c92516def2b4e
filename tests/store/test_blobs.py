"""One contract for a folder and for what fsspec knows: its memory file system and, with ``--s3``, an S3 server."""

import hashlib
from collections.abc import Callable, Iterator
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
        monkeypatch.setattr("store.blobs._FORGOTTEN_S", -60.0)
        keeper.sweep()
        for draft in left[1:]:
            with pytest.raises(FileNotFoundError):
                draft._move(draft.digest)
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
