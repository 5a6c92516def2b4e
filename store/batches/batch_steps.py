"""What moves batches on: each step is one transaction that names the state it leaves, so two keepers do no harm.

A line becomes a job in the transaction that moves the cursor past it, and its primary key is (batch, line): there is
exactly one job a line, whoever dies when. Which step is due, and what a line means, is the keeper's to say.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from store.batches.batches import COLUMNS, Batch, from_row
from store.db.database import Database, dump_json
from store.db.leader_election import Leadership, lead
from store.encryption.vault import Place, Vault
from store.errors import HeadraceError
from store.failpoints import failpoint
from store.files.blob_storage import Draft
from store.files.files import Purpose, add
from store.jobs.acceptance import NewJob, accept_within
from store.jobs.terminal import conclude
from store.schema.batch_states import BatchStatus

# "batches!" in ASCII; any constant does that nothing else on the server locks.
KEEPER_LOCK = 0x62617463_68657321
KEEPER_SILENCE_S = 60.0
"""A piece of a keeper's work may wait for a slow file storage."""


@dataclass(frozen=True, slots=True)
class TakenLine:
    """A line of the input on its way into the database: a job, or the answer that refuses it."""

    line: int
    custom_id: str
    job: NewJob | None
    refusal: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A line that was taken on."""

    line: int
    custom_id: str
    job_id: str | None
    refusal: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A live batch, how many of its lines are jobs that have not ended, and the time left in its window."""

    batch: Batch
    num_under_way: int
    remaining_s: float


def keeper_lock(db: Database) -> AbstractContextManager[Leadership | None]:
    """Hold the keepers' lock for the block if it is free, see ``store.db.leader_election``."""
    return lead(db, KEEPER_LOCK, silence_s=KEEPER_SILENCE_S)


@dataclass(frozen=True, slots=True)
class Live:
    """A batch that has not ended, and whose it is."""

    id: str
    tenant_id: str


_LIVE = text("SELECT id, tenant_id FROM live_batches ORDER BY id")


def live(db: Database) -> list[Live]:
    """Return the batches that have not ended, of every tenant, oldest first."""
    with db.autocommit() as connection:
        return [Live(*row) for row in connection.execute(_LIVE)]


# Only lines that were under way are looked at: their partial index is as small as their number.
_HARVEST = text("""
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
    output_tokens = output_tokens + (SELECT COALESCE(sum((usage ->> 'output_tokens')::bigint), 0) FROM ended)
WHERE id = :id AND EXISTS (SELECT FROM ended)
""")

_LOCK = text("SELECT id FROM batches WHERE id = :id FOR NO KEY UPDATE")

_PROGRESS = text(f"""
SELECT {COLUMNS},
    (SELECT count(*) FROM batch_lines WHERE batch_id = batches.id AND outcome IS NULL) AS num_under_way,
    CAST(extract(epoch FROM expires_at - now()) AS float8) AS remaining_s
FROM batches WHERE id = :id
""")


def harvest(db: Database, tenant_id: str, batch_id: str) -> Progress:
    """Count the lines whose jobs have ended since the last time, and return how the batch stands."""
    with db.begin(tenant_id=tenant_id) as connection:
        connection.execute(_LOCK, {"id": batch_id})
        connection.execute(_HARVEST, {"id": batch_id})
        row = connection.execute(_PROGRESS, {"id": batch_id}).mappings().one()
    return Progress(from_row(row, db.vault), row["num_under_way"], row["remaining_s"])


_BEGIN = text("""
UPDATE batches SET status = 'in_progress', in_progress_at = now(), num_total = :num_total, model = :model
WHERE id = :id AND status = 'validating'
""")


def begin(db: Database, tenant_id: str, batch_id: str, *, num_total: int, model: str | None) -> None:
    """Let a batch whose input is good make progress; nothing if it is not validating any more."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_BEGIN, {"id": batch_id, "num_total": num_total, "model": model})


_FAIL = text("""
UPDATE batches SET status = 'failed', failed_at = now(), errors = CAST(:errors AS jsonb)
WHERE id = :id AND status = 'validating' RETURNING id
""")


def fail(db: Database, batch: Batch, errors: Sequence[dict[str, Any]]) -> None:
    """End a batch whose input is not good."""
    sealed = db.vault.seal(list(errors), Place(batch.tenant_id, "batches", "errors", batch.id))
    with db.begin(tenant_id=batch.tenant_id) as connection:
        if connection.execute(_FAIL, {"id": batch.id, "errors": dump_json(sealed)}).scalar_one_or_none():
            _tell(connection, batch.id)


# The cursor is compared with what the lines were read from: whoever comes second finds that it has moved.
_MOVE = text("""
UPDATE batches SET next_line = :next_line, next_offset = :next_offset, num_failed = num_failed + :num_refused
WHERE id = :id AND status = 'in_progress' AND next_offset = :offset RETURNING id
""")

_TAKE = text("""
INSERT INTO batch_lines (batch_id, line, custom_id, job_id, refusal, outcome)
SELECT :id, r.line, r.custom_id, r.job_id, r.refusal, CASE WHEN r.job_id IS NULL THEN 'refused' END
FROM json_to_recordset(CAST(:rows AS json)) AS r(line int, custom_id text, job_id text, refusal jsonb)
""")


class NoRoom(Exception):
    """The tenant's limits let in only the first ``num_lines`` of the lines; nothing was done."""

    def __init__(self, num_lines: int) -> None:
        super().__init__(num_lines)
        self.num_lines = num_lines


def take_lines(db: Database, batch: Batch, lines: Sequence[TakenLine], *, next_line: int, next_offset: int) -> bool:
    """Make the lines jobs and move the cursor past them; False, with nothing done, if somebody else has, or if the
    batch was cancelled. Raises NoRoom."""
    jobs = [taken.job for taken in lines if taken.job is not None]
    rows = [
        {
            "line": taken.line,
            "custom_id": taken.custom_id,
            "job_id": taken.job and taken.job.id,
            "refusal": db.vault.seal(taken.refusal, _refusal(batch.tenant_id, batch.id, taken.line)),
        }
        for taken in lines
    ]
    values = {
        "id": batch.id,
        "offset": batch.next_offset,
        "next_line": next_line,
        "next_offset": next_offset,
        "num_refused": len(lines) - len(jobs),
    }
    with db.begin(tenant_id=batch.tenant_id) as connection:
        if connection.execute(_MOVE, values).scalar_one_or_none() is None:
            return False
        if jobs:
            _accept(connection, lines, jobs, db.vault)
        connection.execute(_TAKE, {"id": batch.id, "rows": dump_json(rows)})
        failpoint("lines.before_commit")
    failpoint("lines.committed")
    return True


def _accept(connection: Connection, lines: Sequence[TakenLine], jobs: Sequence[NewJob], vault: Vault) -> None:
    for job, outcome in zip(jobs, accept_within(connection, jobs, vault), strict=True):
        if isinstance(outcome, HeadraceError):
            raise NoRoom(next(number for number, taken in enumerate(lines) if taken.job is job)) from outcome


# As a single job's: a queued one has ended then, a running one is asked to.
_CANCEL_JOBS = text("""
WITH asked AS (
    UPDATE jobs SET
        state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
        completed_at = CASE state WHEN 'queued' THEN now() END,
        cancel_requested_at = now()
    WHERE id IN (
            SELECT jobs.id FROM batch_lines JOIN jobs ON jobs.id = batch_lines.job_id
            WHERE batch_id = :id AND outcome IS NULL AND cancel_requested_at IS NULL
                AND state IN ('queued', 'running')
            ORDER BY jobs.id LIMIT :limit FOR NO KEY UPDATE OF jobs)
        AND state IN ('queued', 'running')
    RETURNING id, state, epoch
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'cancel_requested', epoch FROM asked
)
SELECT id, state FROM asked
""")


def cancel_jobs(db: Database, tenant_id: str, batch_id: str, limit: int = 500) -> tuple[list[str], list[str]]:
    """Cancel lines that are under way; return those whose workers must be told, and those that have ended by it."""
    with db.begin(tenant_id=tenant_id) as connection:
        rows = connection.execute(_CANCEL_JOBS, {"id": batch_id, "limit": limit}).all()
        ended = [row.id for row in rows if row.state == "cancelled"]
        conclude(connection, ended)
    return [row.id for row in rows if row.state != "cancelled"], ended


_FINALIZE = text("""
UPDATE batches SET status = 'finalizing', finalizing_at = now()
WHERE id = :id AND status = 'in_progress'
    AND NOT EXISTS (SELECT FROM batch_lines WHERE batch_id = :id AND outcome IS NULL)
""")


def finalize(db: Database, tenant_id: str, batch_id: str) -> None:
    """Begin to write the results of a batch none of whose lines is under way."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_FINALIZE, {"id": batch_id})


_LINES = text("""
SELECT line, custom_id, job_id, refusal FROM batch_lines
WHERE batch_id = :id AND line >= :first AND line <= :last ORDER BY line
""")


def lines_between(db: Database, batch: Batch, first: int, last: int) -> list[StoredLine]:
    """Return the lines from ``first`` to ``last`` that were taken on."""
    with db.autocommit(tenant_id=batch.tenant_id) as connection:
        rows = connection.execute(_LINES, {"id": batch.id, "first": first, "last": last}).mappings().all()
    return [
        StoredLine(
            row["line"],
            row["custom_id"],
            row["job_id"],
            db.vault.open(row["refusal"], _refusal(batch.tenant_id, batch.id, row["line"])),
        )
        for row in rows
    ]


def _refusal(tenant_id: str, batch_id: str, line: int) -> Place:
    return Place(tenant_id, "batch_lines", "refusal", f"{batch_id}/{line}")


_END = text("""
UPDATE batches SET
    status = CAST(:status AS varchar), output_file_id = :output_file_id, error_file_id = :error_file_id,
    num_failed = num_total - num_completed,
    completed_at = CASE WHEN :status = 'completed' THEN now() END,
    expired_at = CASE WHEN :status = 'expired' THEN now() END,
    cancelled_at = CASE WHEN :status = 'cancelled' THEN now() END
WHERE id = :id AND status = CAST(:leaving AS varchar) RETURNING id
""")


@dataclass(frozen=True, slots=True)
class Results:
    """The two files of a batch that has ended, kept in the storage; None for one that would be empty."""

    output: Draft | None = None
    errors: Draft | None = None


class _Late(Exception):
    """Somebody else has ended the batch."""


def end(db: Database, batch: Batch, status: BatchStatus, results: Results) -> bool:
    """End the batch with these results; False, with nothing written, if somebody else has."""
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
                raise _Late
            _tell(connection, batch.id)
            failpoint("results.before_commit")
    except _Late:
        return False
    return True


def _add_result(connection: Connection, batch: Batch, draft: Draft, kind: str) -> str:
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


_TELL = text("""
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, batch_id, type)
SELECT
    'evt_' || replace(gen_random_uuid()::text, '-', ''), batch.tenant_id, endpoint.id, endpoint.url, batch.id,
    'batch.' || batch.status
FROM batches AS batch JOIN webhook_endpoints AS endpoint ON endpoint.tenant_id = batch.tenant_id
WHERE batch.id = :id AND endpoint.disabled_at IS NULL
    AND endpoint.events && ARRAY['batch.' || batch.status, '*']::varchar[]
""")


def _tell(connection: Connection, batch_id: str) -> None:
    """Put the batch's end into the outbox of webhooks, in the transaction that ends it."""
    connection.execute(_TELL, {"id": batch_id})
