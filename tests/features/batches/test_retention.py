"""What batches keep of their words, and how long."""

import pytest

from headrace.features.batches.batch_steps import (
    ParsedLine,
    ResultFiles,
    add_lines,
    count_ended_lines,
    fail,
    finalize,
    start,
)
from headrace.features.batches.batch_steps import end as end_batch
from headrace.features.batches.batches import NewBatch
from headrace.features.batches.batches import create as create_batch
from headrace.features.batches.batches import get as get_batch
from headrace.features.files import files, uploads
from headrace.features.files.blob_storage import open_blobs
from headrace.features.files.files import Purpose
from headrace.features.responses import conversations
from headrace.features.retention.purge import Scope, count
from headrace.features.retention.retention import (
    Retention,
    sweep,
)
from headrace.features.retrieval import vector_stores
from headrace.features.retrieval.vector_stores import StoreModel
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.jobs import erasure
from headrace.store.jobs.sweeps import purge
from headrace.store.registry.prompt_templates import create as create_prompt
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.settings import Settings
from tests.features.retention.test_retention import ASKED, CONTENTS, age, end, purge_all
from tests.store.making import MakeJob, Query


class TestFilesAndBatches:
    def test_an_old_file_goes_and_a_batchs_words_once_it_has_ended(
        self, db: Database, tenant: str, make_job: MakeJob, query: Query, settings: Settings
    ) -> None:
        draft = open_blobs(settings).create()
        draft.write(b"content")
        file = files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)
        new = NewBatch("/v1/completions", "24h", 3600, {"a": ASKED}, None, ASKED, "key", "key_1", None)
        batch = create_batch(db, tenant, new, file)
        start(db, tenant, batch.id, num_total=3, model="tiny", model_versions={})
        lines = [ParsedLine(n, ASKED, None, {"status_code": 400, "body": ASKED}) for n in (1, 2)]
        job = make_job(payload=CONTENTS["payload"])
        live = count_ended_lines(db, tenant, batch.id).batch
        assert add_lines(db, live, [*lines, ParsedLine(3, ASKED, job)], next_line=4, next_offset=9)
        end(db, tenant, job.id)
        query("UPDATE files SET created_at = created_at - interval '200 s'")
        age(query, 200)
        first = sweep(db, tenant, Retention(0, 0, files_s=100), 10)
        assert (
            first.counts["num_files"],
            first.counts["num_inputs"],
            first.counts["num_outputs"],
            first.counts["num_batch_rows"],
        ) == (1, 0, 0, 0)
        assert contents_of(db, query) == [ASKED] * 4, "the batch still reads its lines"
        with pytest.raises(Conflict, match="line of batch_"):
            erasure.purge_job(db, tenant, job.id, actor="tests")
        count_ended_lines(db, tenant, batch.id)
        finalize(db, tenant, batch.id)
        with pytest.raises(Conflict, match="line of batch_"):
            erasure.purge_job(db, tenant, job.id, actor="tests")
        assert end_batch(db, count_ended_lines(db, tenant, batch.id).batch, BatchStatus.COMPLETED, ResultFiles())
        query("UPDATE batches SET completed_at = completed_at - interval '200 s'")
        swept = [sweep(db, tenant, Retention(100, 100), 2) for _ in range(3)]
        assert [one.counts["num_batch_rows"] for one in swept] == [2, 2, 0]
        assert contents_of(db, query) == []
        kept = get_batch(db, tenant, batch.id)
        assert (kept.status, kept.num_total, kept.metadata) == (BatchStatus.COMPLETED, 3, None)
        assert purge(db, 300, 300, 10) == 0
        assert purge(db, 100, 300, 10) == 2, "the job and the batch"
        with pytest.raises(NotFound):
            get_batch(db, tenant, batch.id)
        assert query("SELECT FROM batches") == [], "its idempotency key is free again"

    @pytest.mark.parametrize("ended", ["failed", "completed", "expired", "cancelled"])
    def test_however_a_batch_ended_its_words_go_and_later_its_row(
        self, db: Database, tenant: str, query: Query, settings: Settings, ended: str
    ) -> None:
        draft = open_blobs(settings).create()
        draft.write(b"content")
        file = files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)
        new = NewBatch("/v1/completions", "24h", 3600, {"a": ASKED}, None, ASKED, "key", "key_1", None)
        batch = create_batch(db, tenant, new, file)
        assert sweep(db, tenant, Retention(0, 0), 10).counts["num_batch_rows"] == 0
        query(f"UPDATE batches SET status = '{ended}', {ended}_at = now() - interval '200 s'")
        assert sweep(db, tenant, Retention(100, 100), 10).counts["num_batch_rows"] == 1
        assert get_batch(db, tenant, batch.id).metadata is None
        assert [purge(db, ttl_s, 300, 10) for ttl_s in (300, 100)] == [0, 1]


def contents_of(db: Database, query: Query) -> list[str]:
    """Return the word once per occurrence in the batch, its lines and their jobs."""
    told = query("SELECT batches::text AS row FROM batches UNION ALL SELECT batch_lines::text FROM batch_lines")
    jobs = query("SELECT payload::text AS row FROM jobs")
    return [ASKED for row in (*told, *jobs) if ASKED in row["row"]][:4]


def test_files_batches_and_prompts_go_and_another_tenants_stay(
    db: Database, tenant: str, other_tenant: str, query: Query, settings: Settings
) -> None:
    for owner in (tenant, other_tenant):
        for number in range(3):
            draft = open_blobs(settings).create()
            draft.write(b"%d" % number)
            file = files.create(db, owner, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)
            uploads.create(db, owner, num_bytes=1, filename="a", purpose=Purpose.BATCH, most_bytes=100)
            conversations.create(db, owner, metadata={"a": ASKED})
            vector_stores.create(db, owner, StoreModel("vectors", 1, 8))
            create_prompt(db, owner, name=f"p{number}", template={"instructions": ASKED}, actor="tests")
        new = NewBatch("/v1/completions", "24h", 3600, {"a": ASKED}, None, "f", None, "key_1", None)
        fail(db, create_batch(db, owner, new, file), [])
    there = {"batches": 1, **dict.fromkeys(("files", "uploads", "prompts", "conversations", "vector_stores"), 3)}
    (row,) = query("SELECT min(created_at) AS first FROM files")
    for kind, num in there.items():
        assert purge_all(db, Scope(tenant, before=row["first"]), kind) == 0
        assert purge_all(db, Scope(tenant, "ann"), kind) == 0, "of a user"
        assert count(db, Scope(tenant))[kind] == num
        assert purge_all(db, Scope(tenant), kind) == num
    assert count(db, Scope(tenant)) == dict.fromkeys(("jobs", *there, "live"), 0)
    assert count(db, Scope(other_tenant)) == {"jobs": 0, **there, "live": 0}


def test_a_line_of_a_batch_that_lives_is_left_alone(
    db: Database, tenant: str, make_job: MakeJob, settings: Settings
) -> None:
    draft = open_blobs(settings).create()
    draft.write(b"content")
    file = files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)
    new = NewBatch("/v1/completions", "24h", 3600, {}, None, "one", "key", "key_1", None)
    batch_id = create_batch(db, tenant, new, file).id
    start(db, tenant, batch_id, num_total=1, model="tiny", model_versions={})
    job = make_job()
    batch = count_ended_lines(db, tenant, batch_id).batch
    assert add_lines(db, batch, [ParsedLine(1, "a", job)], next_line=2, next_offset=9)
    end(db, tenant, job.id)
    found = count(db, Scope(tenant))
    assert (found["jobs"], found["live"]) == (0, 1)
    assert purge_all(db, Scope(tenant)) == 0, "the batch still has to read it"
    assert purge_all(db, Scope(tenant), "batches") == 0
    assert get_batch(db, tenant, batch_id).metadata == {}
    count_ended_lines(db, tenant, batch_id)
    finalize(db, tenant, batch_id)
    assert end_batch(db, count_ended_lines(db, tenant, batch_id).batch, BatchStatus.COMPLETED, ResultFiles())
    assert purge_all(db, Scope(tenant)) == 1
