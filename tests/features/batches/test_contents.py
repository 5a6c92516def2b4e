"""The contents of batches' files in the storage."""

from pathlib import Path

import pytest
from sqlalchemy import text

from headrace.features.batches import batches
from headrace.features.batches.batch_steps import fail
from headrace.features.batches.batches import NewBatch, create, get
from headrace.features.files import files
from headrace.features.files.blob_storage import FolderBlobs
from headrace.features.files.files import Purpose
from headrace.store.db.database import Database
from headrace.store.errors import NotFound, Unavailable
from headrace.store.tenants import api_keys
from tests.features.files.test_blob_storage import CONTENT, upload


def test_nothing_refers_to_a_content_that_is_being_removed(db: Database, tmp_path: Path) -> None:
    tenant, blobs = api_keys.create_tenant(db, "acme"), FolderBlobs(tmp_path)
    new = NewBatch("/v1/completions", "24h", 3600, None, None, "f", None, "key_1", None)
    file = upload(db, blobs, tenant)
    assert batches.create(db, tenant, new, file).input_digest == file.digest
    draft = blobs.create()
    draft.write(CONTENT)
    files.keep_content(db, draft)
    with db.begin() as connection:
        connection.execute(text("UPDATE blobs SET removed_at = now()"))
    with pytest.raises(Unavailable, match="again"), db.begin() as connection:
        files.add(connection, tenant, draft, filename="a", purpose=Purpose.BATCH)
    with pytest.raises(NotFound, match=file.id):
        batches.create(db, tenant, new, file)


def test_a_content_that_goes_is_no_other_batchs(db: Database, tenant: str, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    gone, kept = (upload(db, blobs, tenant, content) for content in (b"gone", b"kept"))
    made = {}
    for file in (gone, kept):
        new = NewBatch("/v1/completions", "24h", 3600, None, None, [file.id], None, "key_1", None)
        made[file.id] = create(db, tenant, new, file)
        fail(db, made[file.id], [])
    files.delete(db, tenant, gone.id, actor="tests")
    assert files.get(db, tenant, kept.id) == kept
    assert files.remove_unreferenced(db, blobs, older_than_s=0) == 1
    digests = [get(db, tenant, made[file.id].id).input_digest for file in (gone, kept)]
    assert digests == [None, kept.digest]
