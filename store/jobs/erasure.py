"""Erasure of a job's contents. Its row stays with its times and counts; the usage ledger and the audit log stay too.

    input    payload, fallback, metadata, webhook URL, the dead letter
    output   output, the message of an error, deltas and checkpoints of the stream

Features erase their own rows in the same transaction (``ErasurePart``). Only jobs that have ended are erased: by their
owner, and by ``features.retention``. The caller removes the copy of a stream in Redis
(``store.streams.stream_log.forget``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Row, TextClause, text

from headrace.assembly import parts
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.jobs.jobs import why_missing
from headrace.store.schema.job_states import JobState

MIN_RETENTION_S: Final = 60.0
"""Minimum retention after a job's end, so that a waiting client can read the result."""

EraseRows = Callable[[Connection, Sequence[str]], None]
"""Erases rows of jobs with these ids."""
Sweep = Callable[[Connection, str, Mapping[str, int], int], int]
"""Erases rows of a tenant that are past their time, at most so many; returns their number. The mapping has the seconds
that contents are kept, by the kinds of ``features.retention`` (``inputs_s``, …); a kind that is absent is kept."""
PurgeRows = Callable[[Connection, Mapping[str, Any]], tuple[int, bool]]
"""Erases at most ``limit`` rows of ``tenant_id`` from before ``before``: their number, and True if more may be left."""


@dataclass(frozen=True, slots=True)
class PurgedRows:
    """Rows with contents that are a tenant's rather than a job's: a table, which of its rows, and how they are erased.

    Without ``erase`` they are deleted, with all that refers to them.
    """

    table: str
    condition: str = "true"
    erase: PurgeRows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasurePart:
    """The ``PART`` of a feature's file ``erasure``: how its own contents are erased, in the transactions that do so.

    ``inputs``, ``outputs``: rows of jobs whose input or output was erased just now. ``beside``: rows of jobs that are
    erased at once and altogether, rather than when their times are over. ``needed_by``: SQL of one value, the id of
    what needs contents of a row of ``jobs`` and has not ended. ``sends_output``: SQL of the rows that will still send
    the output of a row of ``jobs``. ``needs_row``: an SQL condition on an emptied row of ``jobs`` that must
    stay. ``sweeps``, ``purges``: contents that are no job's. ``old_rows``: a statement that deletes ``:limit`` emptied
    rows that ended longer than ``:ttl_s`` ago.
    """

    inputs: EraseRows | None = None
    outputs: EraseRows | None = None
    beside: EraseRows | None = None
    needed_by: str | None = None
    sends_output: str | None = None
    needs_row: str | None = None
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    purges: Sequence[PurgedRows] = ()
    old_rows: str | None = None


@cache
def erasure_parts() -> list[ErasurePart]:
    """Return the parts of all features."""
    return parts("erasure", ErasurePart)


def erasing(sql: str) -> EraseRows:
    """Return what runs a statement with the ids of jobs as ``:ids``."""
    statement = text(sql)

    def erase_rows(connection: Connection, job_ids: Sequence[str]) -> None:
        connection.execute(statement, {"ids": list(job_ids)})

    return erase_rows


def sweeping(kind: str, sql: str) -> Sweep:
    """Return what runs a statement with ``:tenant_id``, ``:limit``, and as ``:ttl_s`` the seconds of a kind."""
    statement = text(sql)

    def sweep(connection: Connection, tenant_id: str, kept: Mapping[str, int], limit: int) -> int:
        if kind not in kept:
            return 0
        values = {"tenant_id": tenant_id, "ttl_s": float(kept[kind]), "limit": limit}
        return connection.execute(statement, values).rowcount

    return sweep


def not_needed(*, output: bool) -> str:
    """Return a condition on ``jobs``: nothing needs its contents any more. ``output``: and its output is sent."""
    needs = [part.needed_by for part in erasure_parts()]
    sends = [part.sends_output for part in erasure_parts()] if output else []
    return " AND ".join(f"NOT EXISTS ({one})" for one in [*needs, *sends] if one) or "true"


# The fields of an error that are never encrypted stay (``OUTSIDE`` in ``store.seal``).
_ERROR = """jsonb_build_object(
    'code', error -> 'code', 'retryable', error -> 'retryable', 'attempt', error -> 'attempt',
    'message', 'no longer kept')"""

_INPUT_GONE = "payload = '{}', metadata = '{}', webhook = NULL, fingerprint = NULL, input_purged_at = now()"
_OUTPUT_GONE = f"output = NULL, error = CASE WHEN error IS NOT NULL THEN {_ERROR} END, output_purged_at = now()"

_WITH_INPUT = """
unburied AS (
    DELETE FROM dead_letters USING emptied WHERE dead_letters.job_id = emptied.id
), fallbacks AS (
    DELETE FROM job_fallbacks USING emptied WHERE job_fallbacks.job_id = emptied.id
)"""

_WITH_OUTPUT = """
streams AS (
    DELETE FROM job_streams USING emptied WHERE job_streams.job_id = emptied.id
), checkpoints AS (
    DELETE FROM job_checkpoints USING emptied WHERE job_checkpoints.job_id = emptied.id
), tries AS (
    UPDATE attempts SET error = jsonb_build_object('code', error -> 'code')
    FROM emptied WHERE attempts.job_id = emptied.id AND attempts.error IS NOT NULL
)"""

# Erase the contents of ended jobs.
_ERASE = """
WITH emptied AS (
    UPDATE jobs SET {gone}
    WHERE id = ANY(CAST(:ids AS text[])) AND completed_at IS NOT NULL AND {kept}
    RETURNING id
), {with_it}
SELECT id FROM emptied
"""
_INPUTS = text(_ERASE.format(gone=_INPUT_GONE, kept="input_purged_at IS NULL", with_it=_WITH_INPUT))
_OUTPUTS = text(_ERASE.format(gone=_OUTPUT_GONE, kept="output_purged_at IS NULL", with_it=_WITH_OUTPUT))
# One update instead of two takes half the time, because a row of ``jobs`` is in many indexes.
_BOTH = text(
    _ERASE.format(
        gone=f"{_INPUT_GONE}, {_OUTPUT_GONE}",
        kept="input_purged_at IS NULL AND output_purged_at IS NULL",
        with_it=f"{_WITH_INPUT}, {_WITH_OUTPUT}",
    )
)

# The steps of jobs, which have no contents for longer than their jobs.
_STEPS = text("SELECT id FROM jobs WHERE parent_id = ANY(CAST(:ids AS text[]))")


def _with_steps(connection: Connection, job_ids: Iterable[str]) -> list[str]:
    ids = list(job_ids)
    return [*ids, *connection.execute(_STEPS, {"ids": ids}).scalars()] if ids else []


def erase_inputs(connection: Connection, job_ids: Iterable[str]) -> int:
    """Erase the inputs of those of these jobs that have ended. Returns the number of jobs that had inputs."""
    return _erase(connection, _INPUTS, job_ids, lambda part: (part.inputs,))


def erase_outputs(connection: Connection, job_ids: Iterable[str]) -> int:
    """Erase the outputs of those of these jobs that have ended. Returns the number of jobs that had outputs."""
    return _erase(connection, _OUTPUTS, job_ids, lambda part: (part.outputs,))


def erase_both(connection: Connection, job_ids: Iterable[str]) -> int:
    """Erase inputs and outputs of those of these jobs that have ended and have both. Returns their number."""
    return _erase(connection, _BOTH, job_ids, lambda part: (part.inputs, part.outputs))


def erase(connection: Connection, job_ids: Sequence[str]) -> int:
    """Erase all contents of these jobs, and what features keep beside them. Returns how many jobs had contents."""
    num_both = erase_both(connection, job_ids)
    num_inputs = erase_inputs(connection, job_ids)
    num_outputs = erase_outputs(connection, job_ids)
    _erase_rows(connection, job_ids, lambda part: (part.beside,))
    return num_both + max(num_inputs, num_outputs)


def _erase(
    connection: Connection,
    statement: TextClause,
    job_ids: Iterable[str],
    own: Callable[[ErasurePart], Iterable[EraseRows | None]],
) -> int:
    erased = list(connection.execute(statement, {"ids": _with_steps(connection, job_ids)}).scalars())
    _erase_rows(connection, erased, own)
    return len(erased)


def _erase_rows(
    connection: Connection, job_ids: Sequence[str], own: Callable[[ErasurePart], Iterable[EraseRows | None]]
) -> None:
    if job_ids:
        # Some features name one function for both.
        for erase_rows in dict.fromkeys(one for part in erasure_parts() for one in own(part) if one is not None):
            erase_rows(connection, job_ids)


def purge_job(db: Database, tenant_id: str, job_id: str, *, actor: str, request_id: str | None = None) -> bool:
    """Erase an ended job on its owner's request. Returns False if it was already erased.

    Raises NotFound, Gone if the job's row was deleted too, Conflict while the job or its batch has not ended.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        row = lock_job(connection, tenant_id, job_id)
        if row is not None:
            if not JobState(row.state).is_terminal:
                raise Conflict(
                    f"job {job_id} is {row.state}: cancel it, and delete it when it has ended", code="job_not_ended"
                )
            if row.parent_id is not None:
                raise Conflict(f"job {job_id} is a step of {row.parent_id}: delete that", code="job_not_ended")
            check_not_needed(job_id, row.needed_by)
            erase(connection, [job_id])
            if not row.is_empty:
                record(connection, tenant_id, actor, "job.purged", job_id, {}, request_id)
    if row is None:
        raise why_missing(db, tenant_id, job_id)
    return not row.is_empty


def lock_job(connection: Connection, tenant_id: str, job_id: str) -> Row[Any] | None:
    """Lock a job to be erased and return its ``state``, ``is_empty`` (it was erased), ``needed_by`` and ``parent_id``.

    ``needed_by``: the id of what has not ended and needs the contents. Returns None for a job that the tenant does not
    have.
    """
    return connection.execute(_job(), {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()


def check_not_needed(job_id: str, needed_by: str | None) -> None:
    """Raise Conflict for a job that something needs which has not ended, such as a batch."""
    if needed_by is not None:
        raise Conflict(
            f"job {job_id} is a line of {needed_by}, which has not ended: cancel that or wait for its end",
            code="job_not_ended",
        )


@cache
def _job() -> TextClause:
    needed_by = ", ".join(f"({part.needed_by})" for part in erasure_parts() if part.needed_by)
    return text(f"""
SELECT jobs.state, input_purged_at IS NOT NULL AND output_purged_at IS NOT NULL AS is_empty,
    COALESCE({needed_by or "NULL"}, NULL) AS needed_by, parent_id
FROM jobs WHERE tenant_id = :tenant_id AND id = :job_id FOR NO KEY UPDATE OF jobs
""")
