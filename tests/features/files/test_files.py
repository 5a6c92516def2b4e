"""Files that expire or are deleted, beside others that stay."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.features.files import files, uploads
from headrace.features.files.blob_storage import Blobs, FolderBlobs
from headrace.features.files.files import Purpose
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, HeadraceError, InvalidRequest, NotFound, QuotaExceeded, Unavailable
from tests.processes import wait_for
from tests.refusals import Naming
from tests.store.making import Query


def upload(db: Database, blobs: Blobs, tenant: str, content: bytes, ttl_s: float | None = None) -> files.File:
    draft = blobs.create()
    draft.write(content)
    return files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=1000, ttl_s=ttl_s)


def test_files_expire_the_oldest_first(db: Database, tenant: str, tmp_path: Path, query: Query) -> None:
    blobs = FolderBlobs(tmp_path)
    newer, older, later, kept = (upload(db, blobs, tenant, b"a", ttl_s) for ttl_s in (3600, 3600, 3600, None))
    for hours, file in ((1, newer), (2, older)):
        query(f"UPDATE files SET expires_at = now() - interval '{hours} h' WHERE id = :id", id=file.id)
    assert files.list_files(db, tenant, limit=9) == [kept, later]
    assert refused(lambda: files.get(db, tenant, newer.id)) == (NotFound, f"no file {newer.id}", None)
    whole = upload(db, blobs, tenant, b"b" * 998)  # of 1,000 bytes: expired files do not count
    files.delete(db, tenant, whole.id, actor="tests")
    for left in ([newer, later, kept], [later, kept], [later, kept]):
        files.expire(db, limit=1)
        assert query("SELECT id FROM files ORDER BY id") == [{"id": file.id} for file in left]


def refused(run: Any) -> tuple[type[HeadraceError], str, str | None]:
    with pytest.raises(HeadraceError) as error:
        run()
    return type(error.value), error.value.message, error.value.param


def test_a_file_is_what_was_given_and_pages_are_of_one_tenant(
    db: Database, tenant: str, other_tenant: str, tmp_path: Path
) -> None:
    blobs = FolderBlobs(tmp_path)
    upload(db, blobs, other_tenant, b"far")
    first = upload(db, blobs, tenant, b"abc", ttl_s=60)
    assert (first.tenant_id, first.num_bytes, first.filename, first.purpose) == (tenant, 3, "a", Purpose.BATCH)
    assert first.expires_at == first.created_at + timedelta(seconds=60)
    draft = blobs.create()
    draft.write(b"de")
    second = files.create(db, tenant, draft, filename="b", purpose=Purpose.VISION, most_bytes=5)
    third = upload(db, blobs, tenant, b"")
    assert files.get(db, tenant, second.id) == second
    newest, oldest = [third, second, first], [first, second, third]
    for descending, rows in ((True, newest), (False, oldest)):
        assert files.list_files(db, tenant, limit=9, descending=descending) == rows
        page = files.list_files(db, tenant, limit=1, after=rows[0].id, descending=descending)
        assert page == rows[1:2]
    assert files.list_files(db, tenant, limit=9, purpose=Purpose.VISION) == [second]
    draft = blobs.create()
    draft.write(b"x")
    assert refused(lambda: files.create(db, tenant, draft, filename="c", purpose=Purpose.BATCH, most_bytes=5)) == (
        QuotaExceeded,
        Naming("5 bytes of the 5"),
        None,
    )
    draft.drop()
    for run in (lambda: files.get(db, tenant, "file_x"), lambda: files.delete(db, tenant, "file_x", actor="mia")):
        assert refused(run) == (NotFound, "no file file_x", None)
    files.delete(db, tenant, second.id, actor="mia")
    (entry, *rest) = list_entries(db, tenant)
    assert (entry.actor, entry.action, entry.resource, entry.detail) == (
        "mia",
        "file.deleted",
        second.id,
        {"purpose": "vision"},
    )
    files.discard(db, other_tenant, first.id)
    assert files.get(db, tenant, first.id) == first
    files.discard(db, tenant, first.id)
    assert files.list_files(db, tenant, limit=9) == [third]
    assert list_entries(db, tenant) == [entry, *rest], "nothing is recorded of it"


class Uploads:
    """Uploads of one tenant into a folder."""

    def __init__(self, db: Database, tenant: str, folder: Path) -> None:
        self.db, self.tenant, self.folder, self.blobs = db, tenant, folder, FolderBlobs(folder)

    def begin(self, num_bytes: int = 6) -> uploads.Upload:
        values: Any = {"filename": "a", "purpose": Purpose.BATCH, "most_bytes": 100}
        return uploads.create(self.db, self.tenant, num_bytes=num_bytes, **values)

    def draft(self, content: bytes) -> Any:
        made = self.blobs.create()
        made.write(content)
        return made

    def add(self, upload_id: str, content: bytes) -> str:
        return uploads.add_part(self.db, self.tenant, upload_id, self.draft(content), most_bytes=100).id

    def complete(self, upload_id: str, *parts: str, md5: str | None = None) -> Any:
        return uploads.complete(self.db, self.blobs, self.tenant, upload_id, parts, md5=md5, most_bytes=100)


@pytest.fixture
def own(db: Database, tenant: str, tmp_path: Path) -> Uploads:
    return Uploads(db, tenant, tmp_path)


def test_an_upload_is_completed_with_all_of_its_parts_alone(own: Uploads) -> None:
    made = own.begin()
    assert made.expires_at - made.created_at == timedelta(hours=1)
    foo, bar, far = own.add(made.id, b"foo"), own.add(made.id, b"bar"), own.add(own.begin().id, b"far")
    for parts, md5, said, param in (
        ((foo, far), None, Naming(repr(far)), "part_ids[1]"),
        ((foo, "part_x"), None, Naming("'part_x'"), "part_ids[1]"),
        ((foo, bar, foo), None, Naming(f"{foo} is named twice"), "part_ids[2]"),
        ((bar,), None, Naming("3 bytes"), "part_ids"),
        ((foo, bar), "0" * 32, Naming("3858f62230ac3c915f300c664312c63f"), "md5"),
    ):
        assert refused(partial(own.complete, made.id, *parts, md5=md5)) == (InvalidRequest, said, param)
    assert list((own.folder / "drafts").iterdir()) == [], "nothing is left of it"


def test_an_upload_that_is_completed_stays_so(own: Uploads, query: Query) -> None:
    made = own.begin()
    foo, bar = own.add(made.id, b"foo"), own.add(made.id, b"bar")
    other = own.begin()
    kept = own.add(other.id, b"kept")
    done, file = own.complete(made.id, foo, bar, md5="3858F62230AC3C915F300C664312C63F")
    assert (done.status, done.file_id, file.num_bytes, file.filename) == ("completed", file.id, 6, "a")
    assert own.complete(made.id) == (done, file)
    assert query("SELECT id FROM upload_parts") == [{"id": kept}], "its parts are a file now"
    for run in (lambda: own.add(made.id, b"x"), lambda: uploads.cancel(own.db, own.tenant, made.id)):
        assert refused(run) == (Conflict, Naming(f"{made.id} is completed"), None)
    files.delete(own.db, own.tenant, file.id, actor="mia")
    assert own.complete(made.id) == (done, None)
    query("UPDATE uploads SET expires_at = now() - interval '1 s' WHERE id = :id", id=other.id)
    assert (uploads.expire(own.db, limit=0), uploads.expire(own.db), uploads.expire(own.db)) == (0, 1, 0)
    assert query("SELECT id FROM uploads") == [{"id": made.id}]


def test_a_part_whose_content_was_removed_is_not_made(
    own: Uploads, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = refused(lambda: uploads.get_pending(own.db, own.tenant, "upload_x"))
    assert missing == (NotFound, Naming("upload_x"), None)
    made = own.begin()
    assert uploads.get_pending(own.db, own.tenant, made.id) == made
    keep = files.keep_content

    def keep_and_remove(database: Database, content: Any) -> None:
        keep(database, content)
        query("UPDATE blobs SET removed_at = now()")

    draft = own.draft(b"gone")
    monkeypatch.setattr(files, "keep_content", keep_and_remove)
    assert refused(lambda: uploads.add_part(own.db, own.tenant, made.id, draft, most_bytes=100)) == (
        Unavailable,
        Naming("content was removed"),
        None,
    )


def test_contents_without_references_are_kept_for_ten_minutes_and_the_oldest_go_first(
    db: Database, tenant: str, tmp_path: Path, query: Query
) -> None:
    blobs = FolderBlobs(tmp_path)
    ids = {}
    for age_s in (300, 700, 650):
        file = upload(db, blobs, tenant, b"%d" % age_s)
        ids[age_s] = file.digest
        files.delete(db, tenant, file.id, actor="mia")
        query(
            "UPDATE blobs SET touched_at = now() - make_interval(secs => :s) WHERE digest = :digest",
            s=age_s,
            digest=file.digest,
        )
    for left in ([300, 650], [300], [300]):
        files.remove_unreferenced(db, blobs, limit=1)
        assert {row["digest"] for row in query("SELECT digest FROM blobs")} == {ids[age_s] for age_s in left}
    purposes = {"batch", "user_data", "assistants", "vision", "fine-tune", "evals"}
    assert purposes == files.UPLOADED, "what is made here alone is not uploaded"


def test_a_storage_that_does_not_answer_is_named_by_its_reason(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    with pytest.raises(Unavailable, match="No such file") as missing:
        blobs.open("a" * 64)
    assert missing.value.code == "storage_unavailable"
    for age_s, is_kept in ((86_000, True), (86_500, False)):
        draft = blobs.create()
        draft.write(b"a")
        (path,) = (tmp_path / "drafts").iterdir()
        written_at = path.stat().st_mtime - age_s
        os.utime(path, (written_at, written_at))
        blobs.sweep()
        assert path.exists() is is_kept, age_s
        draft.drop()


def test_files_that_are_added_at_the_same_time_are_counted_together(
    db: Database, tenant: str, tmp_path: Path, query: Query
) -> None:
    blobs = FolderBlobs(tmp_path)
    waiting = "SELECT count(*) AS num FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor(1) as pool:
        with db.begin(tenant_id=tenant) as connection:
            files.lock_files(connection, tenant)
            added = pool.submit(upload, db, blobs, tenant, b"a" * 600)
            wait_for(lambda: query(waiting)[0]["num"], "the other one waits for the tenant's files")
            draft = blobs.create()
            draft.write(b"b" * 600)
            files.keep_content(db, draft)
            files.add(connection, tenant, draft, filename="b", purpose=Purpose.BATCH)
        with pytest.raises(QuotaExceeded):
            added.result(60)
    assert [file.filename for file in files.list_files(db, tenant, limit=9)] == ["b"]
