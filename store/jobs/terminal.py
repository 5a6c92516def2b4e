"""The rows that every terminal transition writes: terminal row, closed attempt, event, dead letter, webhook deliveries.

The row of the usage ledger is written by a trigger, so that jobs which an older release ends are counted too.

A cancel, a sweep and a release call ``conclude`` in the transaction that moved the job rows. A finish has ``CONCLUDED``
in its own statement. A second terminal row for a job violates the primary key, which rolls the transaction back.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from headrace.assembly import parts
from headrace.store.jobs.end_events import EndEvents

MAX_CRASHES = 3
"""A job is poison after so many of its workers died; the last one ran it alone."""

# The version of a row of ``jobs`` runs on an inference server.
_IS_EXTERNAL = """EXISTS (
    SELECT FROM model_versions AS served
    WHERE served.model = jobs.model AND served.version = jobs.model_version AND served.engine IS NOT NULL)"""


DEAD_LETTER_CODES = ("poison", "max_attempts_exceeded")
"""A job that failed with one of these codes is a dead letter: it may succeed later, on another worker."""


def blamed(crashed: str) -> str:
    """Return the SQL condition that a lost attempt of a row of ``jobs`` is counted as a crash of this job.

    ``crashed`` is the SQL condition that a worker died. Any job may have killed the worker that computed it. A worker
    in front of an inference server computes no job, so the first lost attempt is not blamed on the job, only charged.
    """
    return f"({crashed} AND (attempt > 1 OR NOT {_IS_EXTERNAL}))"


def verdict(charge: str, crashed: str) -> str:
    """Return the SQL expression that decides about a row of ``jobs`` after an attempt without an outcome.

    ``charge`` and ``crashed`` are SQL conditions. The value is NULL if the job goes back to the queue, else
    ``cancelled`` or the code of its failure.
    """
    return f"""CASE
        WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
        WHEN {crashed} AND crashes + 1 >= {MAX_CRASHES} THEN 'poison'
        WHEN {charge} AND attempt >= max_attempts THEN 'max_attempts_exceeded' END"""


# Expressions for a row with a column ``verdict``.
STATE_AFTER = "CASE WHEN verdict IS NULL THEN 'queued' WHEN verdict = 'cancelled' THEN 'cancelled' ELSE 'failed' END"

COMPLETED_AFTER = "CASE WHEN verdict IS NOT NULL THEN clock_timestamp() END"

ERROR_AFTER = """CASE WHEN verdict IN ('poison', 'max_attempts_exceeded') THEN jsonb_build_object(
    'code', verdict, 'retryable', false, 'attempt', attempt,
    'message', CASE verdict
        WHEN 'poison' THEN 'every worker that ran this job was lost, the last one while it ran it alone'
        ELSE 'every attempt failed: the worker was lost or its engine failed' END) END"""

# The webhook events of the rows of ``ended``. A job of a face with events has two: the job's and the face's. The URL
# given with the job gets the one with ``is_own``, unless it lists the events that it wants.
_FACES = parts("end_events", EndEvents)
_JOINED = "".join(f" LEFT JOIN {face.table} ON {face.table}.job_id = ended.id" for face in _FACES)
_IS_OWN = " AND ".join(["TRUE", *(f"{face.table}.job_id IS NULL" for face in _FACES)])
EVENTS_OF_ENDED = " UNION ALL ".join(
    [
        f"SELECT ended.id, 'job.' || ended.state AS type, {_IS_OWN} AS is_own FROM ended{_JOINED} "
        "WHERE NOT ended.is_quiet",
        *(
            f"SELECT ended.id, {face.type}, TRUE FROM ended JOIN {face.table} ON {face.table}.job_id = ended.id "
            "WHERE NOT ended.is_quiet"
            for face in _FACES
        ),
    ]
)

# Two tables of a statement with the tables ``ended`` and ``emitted``: webhook deliveries of events of jobs. One for
# each (job, type, URL): a tenant's endpoint wins over the same URL given with the job.
DELIVERIES = """
receivers AS (
    SELECT ended.id AS job_id, ended.tenant_id, emitted.type, endpoint.id AS endpoint_id, endpoint.url
    FROM ended JOIN emitted USING (id) JOIN webhook_endpoints AS endpoint USING (tenant_id)
    WHERE endpoint.disabled_at IS NULL AND endpoint.events && ARRAY[emitted.type, '*']::varchar[]
    UNION ALL
    SELECT ended.id, ended.tenant_id, emitted.type, NULL, ended.url
    FROM ended JOIN emitted USING (id) WHERE ended.url IS NOT NULL
        AND CASE WHEN ended.events IS NULL THEN emitted.is_own ELSE jsonb_exists(ended.events, emitted.type) END
), deliveries AS (
    INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, job_id, type)
    SELECT DISTINCT ON (job_id, type, url)
        'evt_' || replace(gen_random_uuid()::text, '-', ''), tenant_id, endpoint_id, url, job_id, type
    FROM receivers
    ORDER BY job_id, type, url, endpoint_id NULLS LAST
)"""

# The second part of a statement with a table ``ended``: the jobs that are terminal now.
CONCLUDED = f"""
terminal AS (
    INSERT INTO job_terminal (job_id, state, epoch) SELECT id, state, epoch FROM ended
), closed AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = ended.state, error = ended.error
    FROM ended
    WHERE attempts.job_id = ended.id AND attempts.epoch = ended.epoch AND attempts.ended_at IS NULL
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT
        id, state, epoch,
        jsonb_strip_nulls(jsonb_build_object('code', error -> 'code', 'first_token_ms', first_token_ms))
    FROM ended
), old_checkpoints AS (
    DELETE FROM job_checkpoints USING ended WHERE job_checkpoints.job_id = ended.id
), dead AS (
    INSERT INTO dead_letters (job_id, tenant_id, queue, code)
    SELECT id, tenant_id, queue, error ->> 'code' FROM ended
    WHERE error ->> 'code' = ANY(CAST(:dead AS text[])) AND parent_id IS NULL
), emitted AS (
    {EVENTS_OF_ENDED}
), {DELIVERIES}
SELECT id FROM ended
"""

# The columns of ``ended``, from a row of ``jobs``. The end of a quiet job (a line of a batch, a step) is no event.
# A step is no dead letter either: its flow is.
ENDED = """jobs.id, jobs.tenant_id, jobs.parent_id, jobs.queue, jobs.state, jobs.epoch, jobs.error,
    jobs.usage -> 'attempt_first_token_ms' AS first_token_ms,
    jobs.output ->> 'finish_reason' AS finish_reason, jobs.webhook ->> 'url' AS url,
    NULLIF(jobs.webhook -> 'events', 'null') AS events, COALESCE(jobs.webhook -> 'events' = '[]', false) AS is_quiet"""

# Write these rows for jobs that were moved by another statement.
_CONCLUDE = text(f"WITH ended AS (SELECT {ENDED} FROM jobs WHERE id = ANY(CAST(:ids AS text[]))), {CONCLUDED}")


def conclude(connection: Connection, job_ids: Sequence[str]) -> None:
    """Write the terminal rows of these jobs, which this transaction has ended."""
    if job_ids:
        connection.execute(_CONCLUDE, {"ids": list(job_ids), "dead": list(DEAD_LETTER_CODES)})
