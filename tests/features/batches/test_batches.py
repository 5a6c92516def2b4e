"""Batches exactly: how they are created, listed, cancelled, deleted, and what each step writes."""

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from headrace.features.batches import batches
from headrace.features.batches.batch_steps import (
    LiveBatch,
    ParsedLine,
    ResultFiles,
    StoredLine,
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
from headrace.features.batches.batches import Batch, NewBatch, create, find_duplicate, get, list_batches, request_cancel
from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs
from headrace.features.files.files import Purpose
from headrace.features.webhooks.endpoints import create_endpoint
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.db.presence import beat_worker
from headrace.store.errors import Conflict, IdempotencyKeyReused, NotFound, RateLimited, StatementTimeout
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.jobs.jobs import get as get_job
from headrace.store.jobs.jobs import timeline
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants.quotas import num_live_batches
from headrace.store.tenants.tenant_limits import Limits, RequestLimits
from tests.sealing import TurnedSeal
from tests.store.making import CHAIN, QUEUE, MakeJob, Query, new_flow

NEW = NewBatch("/v1/completions", "24h", 3600.0, {"a": "b"}, 60, ["f1"], None, "key_1", "proj_1", traceparent="trace")


@pytest.fixture
def file(db: Database, tenant: str, settings: Settings) -> files.File:
    draft = open_blobs(settings).create()
    draft.write(b"content")
    return files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)


def new(**changes: Any) -> NewBatch:
    return replace(NEW, **changes)


def live(batch: Batch, db: Database, lines: list[ParsedLine], **position: int) -> Batch:
    """Start the batch and store its lines."""
    start(db, batch.tenant_id, batch.id, num_total=len(lines), model="tiny", model_versions={"tiny": "tiny@1"})
    begun = get(db, batch.tenant_id, batch.id)
    assert add_lines(db, begun, lines, **{"next_line": len(lines) + 1, "next_offset": 9, **position}) is not None
    return get(db, batch.tenant_id, batch.id)


def test_a_new_batch_has_all_that_was_asked(db: Database, tenant: str, file: files.File, query: Query) -> None:
    db.seal = TurnedSeal("k")
    made = create(db, tenant, new(idempotency_key="k"), file)
    assert made == get(db, tenant, made.id)
    assert made.expires_at - made.created_at == timedelta(hours=1)
    times = (name for name in Batch.__slots__ if name.endswith("_at") and name not in ("created_at", "expires_at"))
    assert {getattr(made, name) for name in times} == {None}
    expected = {
        "tenant_id": tenant,
        "status": BatchStatus.VALIDATING,
        "url": "/v1/completions",
        "input_file_id": file.id,
        "input_digest": file.digest,
        "api_key_id": "key_1",
        "project_id": "proj_1",
        "completion_window": "24h",
        "metadata": {"a": "b"},
        "output_ttl_s": 60,
        "fingerprint": "f1",
        "model": None,
        "model_versions": None,
        "errors": None,
        "next_line": 1,
        "next_offset": 0,
        "num_total": 0,
        "num_completed": 0,
        "num_failed": 0,
        "input_tokens": 0,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "output_tokens": 0,
        "output_file_id": None,
        "error_file_id": None,
        "traceparent": "trace",
    }
    assert {name: getattr(made, name) for name in expected} == expected
    assert '"a"' not in str(query("SELECT metadata::text AS m FROM batches"))
    assert create(db, tenant, new(metadata=None), file).metadata is None


def test_a_key_is_replayed_with_any_of_its_fingerprints(
    db: Database, tenant: str, other_tenant: str, file: files.File, query: Query
) -> None:
    made = create(db, tenant, new(idempotency_key="k", fingerprints=["new", "old"]), file)
    assert made.fingerprint == "new"
    for same in (["new"], ["newer", "new"]):
        assert create(db, tenant, new(idempotency_key="k", fingerprints=same), file) == made
    with pytest.raises(IdempotencyKeyReused) as caught:
        create(db, tenant, new(idempotency_key="k", fingerprints=["old"]), file)
    assert caught.value.param == "Idempotency-Key"
    assert (batches.is_known(db, tenant, "k"), batches.is_known(db, tenant, "l")) == (True, False)
    assert not batches.is_known(db, other_tenant, "k")
    query("UPDATE blobs SET removed_at = now()")
    with pytest.raises(NotFound, match=f"^no file {file.id}$"):
        create(db, tenant, new(), file)


def test_a_duplicate_is_the_newest_of_the_time_that_was_not_cancelled(
    db: Database, tenant: str, other_tenant: str, file: files.File, query: Query
) -> None:
    old, first, second = (create(db, tenant, new(), file) for _ in range(3))
    query("UPDATE batches SET created_at = created_at - interval '1 h' WHERE id = :id", id=old.id)
    found = find_duplicate(db, tenant, ["f0", "f1"], 600.0)
    assert found == second
    request_cancel(db, tenant, second.id)
    assert find_duplicate(db, tenant, ["f1"], 600.0) == first
    request_cancel(db, tenant, first.id)
    assert find_duplicate(db, tenant, ["f1"], 600.0) is None
    assert (find_duplicate(db, tenant, ["f1"], 7200.0) or first).id == old.id
    assert find_duplicate(db, other_tenant, ["f1"], 7200.0) is None


def test_so_many_batches_of_a_key_and_of_a_tenant_may_live(
    db: Database, tenant: str, other_tenant: str, file: files.File, query: Query
) -> None:
    def limited(of_key: int | None, of_tenant: int | None, key: str = "key_1") -> NewBatch:
        return new(api_key_id=key, limits=RequestLimits(Limits(live_batches=of_tenant), Limits(live_batches=of_key)))

    ids = [create(db, tenant, limited(2, 3), file).id for _ in range(2)]
    with pytest.raises(RateLimited, match="this key has 2 batches") as caught:
        create(db, tenant, limited(2, 3), file)
    assert caught.value.retry_after_s == 10.0
    ids.append(create(db, tenant, limited(2, 3, "key_2"), file).id)
    with pytest.raises(RateLimited, match="organization has 3 batches"):
        create(db, tenant, limited(2, 3, "key_2"), file)
    assert [num_live_batches(db, tenant, key) for key in (None, "key_1", "key_2", "key_3")] == [3, 2, 1, 0]
    assert num_live_batches(db, other_tenant) == 0
    for batch_id, status in zip(ids, ("in_progress", "finalizing", "cancelling"), strict=True):
        query("UPDATE batches SET status = :status WHERE id = :id", status=status, id=batch_id)
    assert num_live_batches(db, tenant) == 3
    assert [one.id for one in list_live(db)] == ids
    for batch_id, status in zip(ids, ("completed", "failed", "expired"), strict=True):
        query(f"UPDATE batches SET status = :status, {status}_at = now() WHERE id = :id", status=status, id=batch_id)
    assert num_live_batches(db, tenant) == 0
    made = create(db, tenant, limited(1, 1), file)
    assert list_live(db) == [LiveBatch(made.id, tenant)]


def test_pages_follow_and_precede_a_batch(
    db: Database, tenant: str, other_tenant: str, file: files.File, query: Query
) -> None:
    made = [create(db, tenant, new(url=url), file).id for url in ("/v1/a", "/v1/b", "/v1/a", "/v1/a")]

    def listed(**page: Any) -> list[int]:
        return [made.index(one.id) for one in list_batches(db, tenant, **{"limit": 9, **page})]

    assert (listed(), listed(limit=2)) == ([3, 2, 1, 0], [3, 2])
    assert (listed(after=made[2]), listed(after=made[2], limit=1)) == ([1, 0], [1])
    assert (listed(before=made[1]), listed(before=made[0], limit=2)) == ([3, 2], [2, 1])
    query("UPDATE batches SET purged_at = now() WHERE id = :id", id=made[2])
    assert (listed(url="/v1/a"), listed(url="/v1/b"), listed(url="/v1/c")) == ([3, 0], [1], [])
    assert listed() == [3, 2, 1, 0]
    assert list(list_batches(db, other_tenant, limit=9)) == []
    for tenant_id, batch_id in ((other_tenant, made[0]), (tenant, "batch_x")):
        with pytest.raises(NotFound, match=f"^no batch {batch_id}$"):
            get(db, tenant_id, batch_id)


def test_lines_are_stored_once_and_counted_by_their_outcome(
    db: Database, tenant: str, file: files.File, make_job: MakeJob, query: Query
) -> None:
    db.seal = TurnedSeal("k")
    made, jobs = create(db, tenant, new(), file), [make_job() for _ in range(3)]
    refusal = {"status_code": 400, "body": {"why": "secret"}}
    lines = [ParsedLine(2, "two", None, refusal)]
    lines += [ParsedLine(number, str(number), job) for number, job in zip((1, 3, 4), jobs, strict=True)]
    started = live(made, db, lines, next_line=5, next_offset=77)
    assert (started.next_line, started.next_offset, started.num_failed, started.num_total) == (5, 77, 1, 4)
    assert (started.status, started.in_progress_at is not None) == (BatchStatus.IN_PROGRESS, True)
    assert (started.model, started.model_versions) == ("tiny", {"tiny": "tiny@1"})
    assert add_lines(db, made, lines, next_line=5, next_offset=77) is None, "another keeper was first"
    start(db, tenant, made.id, num_total=99, model="other", model_versions={})
    assert get(db, tenant, made.id) == started
    assert list_lines(db, started, 2, 3) == [StoredLine(2, "two", None, refusal), StoredLine(3, "3", jobs[1].id, None)]
    assert "secret" not in str(query("SELECT refusal::text AS r FROM batch_lines"))
    held = claim(db, "worker", QUEUE, [job.id for job in jobs], 60.0)
    usage = {"input_tokens": 5, "output_tokens": 2, "cached_tokens": 3, "reasoning_tokens": 1}
    finish(
        db,
        [
            Finish(jobs[0].id, 1, JobState.SUCCEEDED, {"text": "a"}, None, usage),
            Finish(jobs[1].id, 1, JobState.FAILED, None, {"code": "x", "message": "y"}, usage | {"input_tokens": 3}),
        ],
    )
    assert len(held) == 3
    for name, queue in (("a", "tiny@1"), ("b", "tiny@1"), ("c", "other@1")):
        beat_worker(db, name, queue, None, slots=7)
    for _ in range(2):
        found = count_ended_lines(db, tenant, made.id)
        assert (found.num_unfinished, found.num_slots) == (1, 14)
        assert 3000 < found.remaining_s <= 3600
        counted = found.batch
        assert (counted.num_completed, counted.num_failed) == (1, 2)
        assert (counted.input_tokens, counted.output_tokens) == (8, 4), "those of failed lines too"
        assert (counted.cached_tokens, counted.reasoning_tokens) == (6, 2)
    other = create(db, tenant, new(), file)
    assert batches.count_outcomes(db, tenant, [made.id, other.id]) == {
        made.id: {"refused": 1, "succeeded": 1, "failed": 1},
        other.id: {},
    }


def test_an_ended_batch_has_its_files_its_time_and_a_delivery(
    db: Database, tenant: str, other_tenant: str, file: files.File, make_job: MakeJob, query: Query, settings: Settings
) -> None:
    for owner, url, events in (
        (tenant, "all", ["*"]),
        (tenant, "ours", ["batch.expired"]),
        (tenant, "no", ["batch.completed", "job.failed"]),
        (other_tenant, "theirs", ["*"]),
    ):
        create_endpoint(db, owner, url=f"https://example.com/{url}", events=events, actor="tests")
    made = create(db, tenant, new(), file)
    waiting = live(made, db, [ParsedLine(1, "a", make_job()), ParsedLine(2, "b", None, {"status_code": 400})])
    finalize(db, tenant, made.id)
    assert get(db, tenant, made.id).status is BatchStatus.IN_PROGRESS, "a job has not ended"
    query("UPDATE batch_lines SET outcome = 'expired' WHERE outcome IS NULL")
    finalize(db, tenant, made.id)
    finalizing = get(db, tenant, made.id)
    assert (finalizing.status, finalizing.finalizing_at is not None) == (BatchStatus.FINALIZING, True)
    draft = open_blobs(settings).create()
    draft.write(b"{}\n")
    files.keep_content(db, draft)
    assert not end(db, waiting, BatchStatus.EXPIRED, ResultFiles())
    assert end(db, finalizing, BatchStatus.EXPIRED, ResultFiles(errors=draft))
    assert not end(db, finalizing, BatchStatus.COMPLETED, ResultFiles())
    ended = get(db, tenant, made.id)
    assert (ended.status, ended.output_file_id, ended.num_failed) == (BatchStatus.EXPIRED, None, 2)
    assert (ended.expired_at is not None, ended.completed_at, ended.cancelled_at) == (True, None, None)
    (row,) = query(
        "SELECT id, filename, purpose, extract(epoch FROM expires_at - created_at) AS s FROM files WHERE id <> :id",
        id=file.id,
    )
    assert row == {"id": ended.error_file_id, "filename": f"{made.id}_error.jsonl", "purpose": "batch_output", "s": 60}
    sent = query("SELECT right(url, 4) AS url, tenant_id, batch_id, type, job_id FROM webhook_deliveries ORDER BY 1")
    told = {"tenant_id": tenant, "batch_id": made.id, "type": "batch.expired", "job_id": None}
    assert sent == [{"url": "/all", **told}, {"url": "ours", **told}]


def test_a_batch_fails_once_while_it_is_validated(db: Database, tenant: str, file: files.File, query: Query) -> None:
    db.seal = TurnedSeal("k")
    made, started = create(db, tenant, new(), file), create(db, tenant, new(), file)
    start(db, tenant, started.id, num_total=1, model=None, model_versions={})
    create_endpoint(db, tenant, url="https://example.com/all", events=["*"], actor="tests")
    for batch in (made, made, started):
        fail(db, batch, [{"code": "empty_file", "message": "secret"}])
    found = get(db, tenant, made.id)
    assert (found.status, found.errors) == (BatchStatus.FAILED, [{"code": "empty_file", "message": "secret"}])
    assert found.failed_at is not None
    assert get(db, tenant, started.id).status is BatchStatus.IN_PROGRESS
    assert "secret" not in str(query("SELECT errors::text AS e FROM batches"))
    assert query("SELECT batch_id, type FROM webhook_deliveries") == [{"batch_id": made.id, "type": "batch.failed"}]


def test_a_cancel_reaches_the_jobs_and_steps_of_the_batch_in_bounded_steps(
    db: Database, tenant: str, other_tenant: str, file: files.File, make_job: MakeJob
) -> None:
    queued, running, untouched = (make_job() for _ in range(3))
    flow, begun = new_flow(make_job, CHAIN), new_flow(make_job, CHAIN)
    made, other = create(db, tenant, new(), file), create(db, tenant, new(), file)
    live(other, db, [ParsedLine(1, "a", untouched)])
    jobs = [queued, running, flow, begun]
    live(made, db, [ParsedLine(number, str(number), job) for number, job in enumerate(jobs, 1)])
    step = begun.steps[0].id
    assert claim(db, "worker", QUEUE, [running.id, step], 60.0).keys() == {running.id, step}
    with pytest.raises(NotFound):
        request_cancel(db, other_tenant, made.id)
    asked = request_cancel(db, tenant, made.id)
    assert (asked.status, asked.cancelling_at is not None) == (BatchStatus.CANCELLING, True)
    late = [ParsedLine(9, "late", make_job())]
    assert add_lines(db, asked, late, next_line=10, next_offset=99) is None, "no more lines start"
    to_tell: set[str] = set()
    over: set[str] = set()
    for _ in range(4):
        found = cancel_jobs(db, tenant, made.id, limit=1)
        to_tell |= set(found[0])
        over |= set(found[1])
    assert (to_tell, over) == ({running.id, step}, {queued.id, flow.id})
    assert cancel_jobs(db, tenant, made.id) == ([], [])
    assert get_job(db, tenant, untouched.id).cancel_requested_at is None
    assert [event.kind for event in timeline(db, tenant, queued.id)] == ["queued", "cancel_requested", "cancelled"]
    assert end(db, request_cancel(db, tenant, made.id), BatchStatus.CANCELLED, ResultFiles())
    with pytest.raises(Conflict, match=f"{made.id} is cancelled") as caught:
        request_cancel(db, tenant, made.id)
    assert caught.value.code == "batch_not_cancellable"
    assert get(db, tenant, made.id).cancelled_at is not None


def test_an_ended_batch_is_deleted_with_its_files_and_its_jobs_soon(
    db: Database, tenant: str, other_tenant: str, file: files.File, make_job: MakeJob, query: Query, settings: Settings
) -> None:
    job, foreign = make_job(), make_job()
    made = create(db, tenant, new(idempotency_key="k"), file)
    other = create(db, tenant, new(idempotency_key="l"), file)
    live(other, db, [ParsedLine(1, "a", foreign)])
    live(made, db, [ParsedLine(1, "a", job)])
    with pytest.raises(Conflict, match=f"{made.id} is in_progress"):
        batches.delete(db, tenant, made.id, actor="key_1")
    query("UPDATE batch_lines SET outcome = 'succeeded'")
    finalize(db, tenant, made.id)
    draft = open_blobs(settings).create()
    draft.write(b"{}\n")
    files.keep_content(db, draft)
    assert end(db, get(db, tenant, made.id), BatchStatus.COMPLETED, ResultFiles(output=draft))
    with pytest.raises(NotFound):
        batches.delete(db, other_tenant, made.id, actor="key_1")
    hasty = Database(settings.database_url, pool_size=1, application_name="hasty", lock_timeout_s=0.2)
    with closing(hasty), db.begin() as holder:
        holder.execute(text("SELECT FROM files FOR UPDATE"))
        with pytest.raises(StatementTimeout):
            batches.delete(hasty, tenant, made.id, actor="key_1")
    assert query("SELECT id FROM jobs WHERE purge_when_ended") == [{"id": job.id}], "done before, and not for nothing"
    batches.delete(db, tenant, made.id, actor="key_1")
    assert query("SELECT id FROM files") == []
    assert query("SELECT id FROM jobs WHERE purge_when_ended") == [{"id": job.id}]
    left = query("SELECT metadata, errors, fingerprint, idempotency_key FROM batches WHERE purged_at IS NOT NULL")
    assert left == [dict.fromkeys(("metadata", "errors", "fingerprint", "idempotency_key"))]
    assert batches.is_known(db, tenant, "l")
    (entry,) = (one for one in list_entries(db, tenant) if one.action == "batch.deleted")
    assert (entry.resource, entry.actor, entry.detail) == (made.id, "key_1", {"url": "/v1/completions"})
