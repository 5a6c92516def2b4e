"""Each step of a batch changes this batch, and no other of its tenant."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.features.batches.batch_steps import (
    LinesOverLimit,
    ParsedLine,
    ResultFiles,
    add_lines,
    cancel_jobs,
    count_ended_lines,
    end,
    fail,
    finalize,
    list_lines,
    list_live,
    start,
)
from headrace.features.batches.batches import Batch, NewBatch, create, get, request_cancel
from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs
from headrace.features.files.files import Purpose
from headrace.features.webhooks.delivery_log import list_deliveries
from headrace.features.webhooks.endpoints import create_endpoint
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants.tenant_limits import Limits, RequestLimits
from tests.store.making import QUEUE, MakeJob, Query

USAGE = {"input_tokens": 5, "output_tokens": 2}


@pytest.fixture
def file(db: Database, tenant: str, settings: Settings) -> files.File:
    draft = open_blobs(settings).create()
    draft.write(b"content")
    return files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)


@pytest.fixture
def endpoints(db: Database, tenant: str, query: Query) -> None:
    """A disabled and an enabled endpoint for all events."""
    create_endpoint(db, tenant, url="https://example.com/gone", events=["*"], actor="tests")
    query("UPDATE webhook_endpoints SET disabled_at = now()")
    create_endpoint(db, tenant, url="https://example.com/hook", events=["*"], actor="tests")


def rows_of(query: Query, batch: Batch) -> list[list[dict[str, object]]]:
    """The rows of a batch, of its lines and of their jobs."""
    of_lines = "WHERE id IN (SELECT job_id FROM batch_lines WHERE batch_id = :id) ORDER BY id"
    return [
        query("SELECT * FROM batches WHERE id = :id", id=batch.id),
        query("SELECT * FROM batch_lines WHERE batch_id = :id ORDER BY line", id=batch.id),
        query(f"SELECT * FROM jobs {of_lines}", id=batch.id),
    ]


@contextmanager
def unchanged(query: Query, batch: Batch) -> Iterator[None]:
    """The rows of a batch are the same before and after the block."""
    before = rows_of(query, batch)
    yield
    assert rows_of(query, batch) == before


@pytest.mark.usefixtures("endpoints")
def test_a_step_leaves_another_batch_as_it_is(
    db: Database, tenant: str, file: files.File, make_job: MakeJob, query: Query
) -> None:
    def make(name: str) -> Batch:
        return create(db, tenant, NewBatch("/v1/completions", "24h", 3600, {}, None, [name], name, "key_1", None), file)

    def run(batch: Batch, *names: str) -> list[str]:
        """Start a batch with a refused line and a job for each other name."""
        start(db, tenant, batch.id, num_total=1 + len(names), model="tiny", model_versions={"tiny": "tiny@1"})
        jobs = [make_job(webhook={"events": []}) for _ in names]
        lines = [ParsedLine(number, name, job) for number, (name, job) in enumerate(zip(names, jobs, strict=True), 1)]
        lines.append(ParsedLine(len(lines) + 1, "refused", None, {"status_code": 400}))
        progress = count_ended_lines(db, tenant, batch.id)
        assert add_lines(db, progress.batch, lines, next_line=len(lines) + 1, next_offset=9)
        return [job.id for job in jobs]

    def succeed(job_id: str) -> None:
        epoch = claim(db, "worker", QUEUE, [job_id], 60)[job_id].epoch
        assert finish(db, [Finish(job_id, epoch, JobState.SUCCEEDED, {"text": "a"}, None, USAGE, ())]) == {job_id}

    ours, other, wrong, dropped = (make(name) for name in ("ours", "other", "wrong", "dropped"))
    with unchanged(query, other):
        fail(db, wrong, [{"code": "empty_file"}])
        start(db, tenant, ours.id, num_total=2, model="tiny", model_versions={"tiny": "tiny@1"})
    ended, _ = run(other, "ended", "waits")
    with unchanged(query, other):
        (mine,) = run(ours, "mine")
    succeed(mine)
    succeed(ended)
    with unchanged(query, other):
        counted = count_ended_lines(db, tenant, ours.id)
        assert (counted.num_unfinished, counted.batch.num_completed, counted.batch.num_failed) == (0, 1, 1)
        assert (counted.batch.input_tokens, counted.batch.output_tokens) == (5, 2)
        assert [line.custom_id for line in list_lines(db, counted.batch, 1, 9)] == ["mine", "refused"]
        finalize(db, tenant, ours.id)
        finalizing = get(db, tenant, ours.id)
        assert end(db, finalizing, BatchStatus.COMPLETED, ResultFiles())
        run(dropped, "dropped")
        request_cancel(db, tenant, dropped.id)
        assert len(cancel_jobs(db, tenant, dropped.id)[1]) == 1
    assert count_ended_lines(db, tenant, other.id).batch.num_completed == 1
    finalize(db, tenant, other.id)
    assert get(db, tenant, other.id).status is BatchStatus.IN_PROGRESS, "one of its jobs waits"
    assert [live.id for live in list_live(db)] == [other.id, dropped.id]
    told = [(row.batch_id, row.type) for row in list_deliveries(db, tenant)]
    assert told == [(ours.id, "batch.completed"), (wrong.id, "batch.failed")]


def test_the_lines_before_the_first_over_a_limit_may_be_stored(
    db: Database, tenant: str, file: files.File, make_job: MakeJob, query: Query
) -> None:
    batch = create(db, tenant, NewBatch("/v1/completions", "24h", 3600, {}, None, ["a"], "ours", "key_1", None), file)
    start(db, tenant, batch.id, num_total=4, model="tiny", model_versions={"tiny": "tiny@1"})
    limits = RequestLimits(Limits(concurrent_jobs=1), Limits())
    lines = [ParsedLine(1, "refused", None, {"status_code": 400})]
    lines += [ParsedLine(line, str(line), make_job(limits=limits)) for line in (2, 3, 4)]
    live = count_ended_lines(db, tenant, batch.id).batch
    with pytest.raises(LinesOverLimit) as over:
        add_lines(db, live, lines, next_line=5, next_offset=9)
    assert over.value.num_lines == 2
    assert query("SELECT 1 FROM batch_lines WHERE batch_id = :id", id=batch.id) == []
    assert add_lines(db, live, lines[:2], next_line=3, next_offset=5)
