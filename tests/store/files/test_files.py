"""Files that expire or are deleted, beside others that stay."""

from pathlib import Path

from store.batches.batch_steps import fail
from store.batches.batches import NewBatch, create, get
from store.db.database import Database
from store.files import files
from store.files.blob_storage import Blobs, FolderBlobs
from store.files.files import Purpose
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
    for left in ([newer, later, kept], [later, kept], [later, kept]):
        files.expire(db, limit=1)
        assert query("SELECT id FROM files ORDER BY id") == [{"id": file.id} for file in left]


def test_a_content_that_goes_is_no_other_batchs(db: Database, tenant: str, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    gone, kept = (upload(db, blobs, tenant, content) for content in (b"gone", b"kept"))
    batches = {}
    for file in (gone, kept):
        new = NewBatch("/v1/completions", "24h", 3600, None, None, [file.id], None, "key_1", None)
        batches[file.id] = create(db, tenant, new, file)
        fail(db, batches[file.id], [])
    files.delete(db, tenant, gone.id, actor="tests")
    assert files.get(db, tenant, kept.id) == kept
    assert files.remove_unreferenced(db, blobs, older_than_s=0) == 1
    digests = [get(db, tenant, batches[file.id].id).input_digest for file in (gone, kept)]
    assert digests == [None, kept.digest]
