"""State transitions of batches, each in one transaction.

A transition names the state that it leaves, so two keepers cannot do it twice. A line becomes a job in the transaction
that moves the cursor past it, and the primary key is (batch, line). So each line has exactly one job, even if a keeper
dies. The batch keeper chooses the transition and parses the lines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from headrace.features.batches.batches import COLUMNS, Batch, from_row
from headrace.features.files.blob_storage import BlobWriter
from headrace.features.files.files import Purpose, add
from headrace.features.flows.store.settling import settle
from headrace.store.db.database import Database
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.errors import HeadraceError
from headrace.store.failpoints import failpoint
from headrace.store.jobs.acceptance import Accepted, NewJob, accept_within
from headrace.store.jobs.terminal import conclude
from headrace.store.json_text import dump_json
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.seal import Seal, SealContext


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """A parsed line of the input that is not stored yet: its job, or the error that refuses it."""

    line: int
    custom_id: str
    job: NewJob | None
    refusal: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A line in the database: the id of its job, or the error that refused it."""

    line: int
    custom_id: str
    job_id: str | None
    refusal: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """An unfinished batch, the number of its jobs that have not ended, and the time left in its window, in seconds.

    ``is_early``: its ``start_after`` has not come. ``num_slots``: of the live workers of its versions.
    """

    batch: Batch
    num_unfinished: int
    remaining_s: float
    is_early: bool
    num_slots: int = 0


# All batches that have not ended.
_LIVE = text("SELECT id, tenant_id FROM live_batches ORDER BY id")

# Counts the lines of ended jobs. A partial index holds the unfinished lines only.
_COUNT_ENDED = text("""
WITH ended AS (
    UPDATE batch_lines SET outcome = jobs.state
    FROM jobs
    WHERE batch_lines.batch_id = :id AND batch_lines.outcome IS NULL AND jobs.id = batch_lines.job_id
        AND jobs.completed_at IS NOT NULL
    RETURNING jobs.state, jobs.usage
)
UPDATE batches SET
    num_completed = num_completed + (SELECT count(*) FROM ended WHERE state = 'succeeded'),
    num_failed = num_failed + (SELECT count(*) FROM ended WHERE state <> 'succeeded'),
    input_tokens = input_tokens + (SELECT COALESCE(sum((usage ->> 'input_tokens')::bigint), 0) FROM ended),
    output_tokens = output_tokens + (SELECT COALESCE(sum((usage ->> 'output_tokens')::bigint), 0) FROM ended),
    cached_tokens = cached_tokens + (SELECT COALESCE(sum((usage ->> 'cached_tokens')::bigint), 0) FROM ended),
    reasoning_tokens = reasoning_tokens + (SELECT COALESCE(sum((usage ->> 'reasoning_tokens')::bigint), 0) FROM ended)
WHERE id = :id AND EXISTS (SELECT FROM ended)
""")

# Locks the batch for the transaction.
_LOCK = text("SELECT id FROM batches WHERE id = :id FOR NO KEY UPDATE")

# The batch, its unfinished lines, and the time left in its window.
_PROGRESS = text(f"""
SELECT {COLUMNS},
    (SELECT count(*) FROM batch_lines WHERE batch_id = batches.id AND outcome IS NULL) AS num_unfinished,
    CAST(extract(epoch FROM expires_at - now()) AS float8) AS remaining_s,
    COALESCE(start_after > now(), false) AS is_early,
    (SELECT CAST(COALESCE(sum(slots), 0) AS int) FROM worker_processes
        WHERE queue IN (SELECT value FROM jsonb_each_text(model_versions))
            AND seen_at > now() - make_interval(secs => :gone_after_s)) AS num_slots
FROM batches WHERE id = :id
""")

# From validating to in_progress.
_START = text("""
UPDATE batches SET status = 'in_progress', in_progress_at = now(), num_total = :num_total, model = :model,
    model_versions = CAST(:model_versions AS jsonb)
WHERE id = :id AND status = 'validating'
""")

# From validating to failed.
_FAIL = text("""
UPDATE batches SET status = 'failed', failed_at = now(), errors = CAST(:errors AS jsonb)
WHERE id = :id AND status = 'validating' RETURNING id
""")

# Moves the cursor past the lines, unless another keeper has already moved it.
_MOVE_CURSOR = text("""
UPDATE batches SET next_line = :next_line, next_offset = :next_offset, num_failed = num_failed + :num_refused
WHERE id = :id AND status = 'in_progress' AND next_offset = :offset RETURNING id
""")

# Stores the lines, with their jobs or their errors.
_INSERT_LINES = text("""
INSERT INTO batch_lines (batch_id, line, custom_id, job_id, refusal, outcome)
SELECT :id, r.line, r.custom_id, r.job_id, r.refusal, CASE WHEN r.job_id IS NULL THEN 'refused' END
FROM json_to_recordset(CAST(:rows AS json)) AS r(line int, custom_id text, job_id text, refusal jsonb)
""")

# Cancels queued jobs of the batch, and requests it of running ones. The end of a job with steps follows from these.
_CANCEL_JOBS = text("""
WITH asked AS (
    UPDATE jobs SET
        state = CASE WHEN state = 'queued' AND task <> 'flow' THEN 'cancelled' ELSE state END,
        completed_at = CASE WHEN state = 'queued' AND task <> 'flow' THEN now() END,
        cancel_requested_at = now()
    WHERE id = ANY (ARRAY(
            SELECT jobs.id FROM batch_lines JOIN jobs ON jobs.id = batch_lines.job_id
            WHERE batch_id = :id AND outcome IS NULL AND cancel_requested_at IS NULL
                AND state IN ('queued', 'running')
            ORDER BY jobs.id LIMIT :limit FOR NO KEY UPDATE OF jobs))
        AND state IN ('queued', 'running')
    RETURNING id, state, epoch, task
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'cancel_requested', epoch FROM asked
)
SELECT id, state, task FROM asked
""")

# The steps of these jobs that run.
_RUNNING_STEPS = text("""
SELECT id FROM jobs WHERE parent_id = ANY(CAST(:ids AS text[])) AND state = 'running'
""")

# From in_progress to finalizing, if all jobs have ended.
_FINALIZE = text("""
UPDATE batches SET status = 'finalizing', finalizing_at = now()
WHERE id = :id AND status = 'in_progress'
    AND NOT EXISTS (SELECT FROM batch_lines WHERE batch_id = :id AND outcome IS NULL)
""")

# Stored lines of a range.
_LINES = text("""
SELECT line, custom_id, job_id, refusal FROM batch_lines
WHERE batch_id = :id AND line >= :first AND line <= :last ORDER BY line
""")

# From the current status to a final one, with the result files.
_END = text("""
UPDATE batches SET
    status = CAST(:status AS varchar), output_file_id = :output_file_id, error_file_id = :error_file_id,
    num_failed = num_total - num_completed,
    completed_at = CASE WHEN :status = 'completed' THEN now() END,
    expired_at = CASE WHEN :status = 'expired' THEN now() END,
    cancelled_at = CASE WHEN :status = 'cancelled' THEN now() END
WHERE id = :id AND status = CAST(:leaving AS varchar) RETURNING id
""")

# Adds a delivery of the batch's event for each subscribed endpoint.
_ADD_WEBHOOKS = text("""
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, batch_id, type)
SELECT
    'evt_' || replace(gen_random_uuid()::text, '-', ''), batch.tenant_id, endpoint.id, endpoint.url, batch.id,
    'batch.' || batch.status
FROM batches AS batch JOIN webhook_endpoints AS endpoint ON endpoint.tenant_id = batch.tenant_id
WHERE batch.id = :id AND endpoint.disabled_at IS NULL
    AND endpoint.events && ARRAY['batch.' || batch.status, '*']::varchar[]
""")


@dataclass(frozen=True, slots=True)
class LiveBatch:
    """A batch that has not ended, and its tenant."""

    id: str
    tenant_id: str


def list_live(db: Database) -> list[LiveBatch]:
    """Return the batches of all tenants that have not ended, oldest first."""
    with db.autocommit() as connection:
        return [LiveBatch(*row) for row in connection.execute(_LIVE)]


def count_ended_lines(db: Database, tenant_id: str, batch_id: str) -> BatchProgress:
    """Count the lines of jobs that have ended since the last call, and return the batch's progress."""
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_LOCK, {"id": batch_id})
        connection.execute(_COUNT_ENDED, {"id": batch_id})
        row = connection.execute(_PROGRESS, {"id": batch_id, "gone_after_s": GONE_AFTER_S}).mappings().one()
    return BatchProgress(
        from_row(row, db.seal), row["num_unfinished"], row["remaining_s"], row["is_early"], row["num_slots"]
    )


def start(
    db: Database,
    tenant_id: str,
    batch_id: str,
    *,
    num_total: int,
    model: str | None,
    model_versions: Mapping[str, str],
) -> None:
    """Start a batch with valid input, for these versions. Does nothing if the batch is not in ``validating``."""
    values = {"id": batch_id, "num_total": num_total, "model": model, "model_versions": dump_json(dict(model_versions))}
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_START, values)


def fail(db: Database, batch: Batch, errors: Sequence[dict[str, Any]]) -> None:
    """End a batch with invalid input, and store its errors."""
    sealed = db.seal.seal(list(errors), SealContext(batch.tenant_id, "batches", "errors", batch.id))
    with db.begin(tenant_id=batch.tenant_id) as connection:
        if connection.execute(_FAIL, {"id": batch.id, "errors": dump_json(sealed)}).scalar_one_or_none():
            _add_webhooks(connection, batch.id)


class LinesOverLimit(Exception):
    """The tenant's limits allow only the first ``num_lines`` of the lines. Nothing was stored."""

    def __init__(self, num_lines: int) -> None:
        super().__init__(num_lines)
        self.num_lines = num_lines


def add_lines(
    db: Database, batch: Batch, lines: Sequence[ParsedLine], *, next_line: int, next_offset: int
) -> list[Accepted] | None:
    """Make the lines jobs, move the cursor past them, and return the outcomes of the jobs.

    Returns None, with nothing stored, if another keeper has moved the cursor or the batch was cancelled. Raises
    LinesOverLimit.
    """
    jobs = [parsed.job for parsed in lines if parsed.job is not None]
    rows = [
        {
            "line": parsed.line,
            "custom_id": parsed.custom_id,
            "job_id": parsed.job and parsed.job.id,
            "refusal": db.seal.seal(parsed.refusal, _refusal(batch.tenant_id, batch.id, parsed.line)),
        }
        for parsed in lines
    ]
    values = {
        "id": batch.id,
        "offset": batch.next_offset,
        "next_line": next_line,
        "next_offset": next_offset,
        "num_refused": len(lines) - len(jobs),
    }
    with db.begin(tenant_id=batch.tenant_id) as connection:
        if connection.execute(_MOVE_CURSOR, values).scalar_one_or_none() is None:
            return None
        accepted = _accept(connection, lines, jobs, db.seal) if jobs else []
        connection.execute(_INSERT_LINES, {"id": batch.id, "rows": dump_json(rows)})
        failpoint("lines.before_commit")
    failpoint("lines.committed")
    return accepted


def _accept(connection: Connection, lines: Sequence[ParsedLine], jobs: Sequence[NewJob], seal: Seal) -> list[Accepted]:
    accepted = []
    for job, outcome in zip(jobs, accept_within(connection, jobs, seal), strict=True):
        if isinstance(outcome, HeadraceError):
            raise LinesOverLimit(next(number for number, parsed in enumerate(lines) if parsed.job is job)) from outcome
        accepted.append(outcome)
    return accepted


def cancel_jobs(db: Database, tenant_id: str, batch_id: str, limit: int = 500) -> tuple[list[str], list[str]]:
    """Cancel unfinished jobs of the batch.

    Returns the ids of running jobs and steps, to notify their workers, and of jobs that have now ended.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        rows = connection.execute(_CANCEL_JOBS, {"id": batch_id, "limit": limit}).all()
        ended = [row.id for row in rows if row.state == "cancelled"]
        conclude(connection, ended)
        flows = [row.id for row in rows if row.task == FLOW_TASK]
        settled = settle(connection, flows, db.seal)
        steps = [*connection.execute(_RUNNING_STEPS, {"ids": flows}).scalars()] if flows else []
    running = [row.id for row in rows if row.state != "cancelled" and row.task != FLOW_TASK]
    return [*running, *steps], [*ended, *settled.ended]


def finalize(db: Database, tenant_id: str, batch_id: str) -> None:
    """Move a batch to ``finalizing`` if all its jobs have ended."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_FINALIZE, {"id": batch_id})


def list_lines(db: Database, batch: Batch, first: int, last: int) -> list[StoredLine]:
    """Return the stored lines from ``first`` to ``last``, both included."""
    with db.autocommit(tenant_id=batch.tenant_id) as connection:
        rows = connection.execute(_LINES, {"id": batch.id, "first": first, "last": last}).mappings().all()
    return [
        StoredLine(
            row["line"],
            row["custom_id"],
            row["job_id"],
            db.seal.open(row["refusal"], _refusal(batch.tenant_id, batch.id, row["line"])),
        )
        for row in rows
    ]


def _refusal(tenant_id: str, batch_id: str, line: int) -> SealContext:
    return SealContext(tenant_id, "batch_lines", "refusal", f"{batch_id}/{line}")


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The two result files of a batch, already in the storage; None for a file that would be empty."""

    output: BlobWriter | None = None
    errors: BlobWriter | None = None


class _AlreadyEnded(Exception):
    """Another keeper has ended the batch."""


def end(db: Database, batch: Batch, status: BatchStatus, results: ResultFiles) -> bool:
    """End the batch with these results. Returns False, with nothing stored, if another keeper has ended it."""
    try:
        with db.begin(tenant_id=batch.tenant_id) as connection:
            ids = [
                None if draft is None else _add_result(connection, batch, draft, kind)
                for draft, kind in ((results.output, "output"), (results.errors, "error"))
            ]
            values = {
                "id": batch.id,
                "status": status,
                "leaving": batch.status,
                "output_file_id": ids[0],
                "error_file_id": ids[1],
            }
            if connection.execute(_END, values).scalar_one_or_none() is None:
                raise _AlreadyEnded
            _add_webhooks(connection, batch.id)
            failpoint("results.before_commit")
    except _AlreadyEnded:
        return False
    return True


def _add_result(connection: Connection, batch: Batch, draft: BlobWriter, kind: str) -> str:
    filename = f"{batch.id}_{kind}.jsonl"
    made = add(
        connection,
        batch.tenant_id,
        draft,
        filename=filename,
        purpose=Purpose.BATCH_OUTPUT,
        ttl_s=None if batch.output_ttl_s is None else float(batch.output_ttl_s),
    )
    return made.id


def _add_webhooks(connection: Connection, batch_id: str) -> None:
    """Add the event to the webhook outbox, in the transaction that ends the batch."""
    connection.execute(_ADD_WEBHOOKS, {"id": batch_id})
