"""What every terminal transition leaves behind: the terminal row, the closed attempt, the event, the webhook outbox.

The row of the usage ledger is a trigger's, so that what an older release ends is counted too (revision 0005).

Called in the transaction that moved the job rows, whoever moved them (canceller, sweep, worker); the finish, which is
nearly all of them, says it in the statement that moves them. A second terminal row for a job violates the primary key
and takes the whole transaction back.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from store.jobs.responses import EVENT_TYPE

MAX_CRASHES = 3
"""A job that was in the hands of this many dying workers, the last time alone, is poison."""


DEAD_LETTER_CODES = ("poison", "max_attempts_exceeded")
"""A job that failed for one of these is a dead letter: it may well succeed another day, on another worker."""


def verdict(charge: str, crashed: str) -> str:
    """Return the SQL for what becomes of a row of ``jobs`` whose attempt ended without an outcome.

    ``charge`` and ``crashed`` are SQL conditions. NULL means that it goes back to the queue.
    """
    return f"""CASE
        WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
        WHEN {crashed} AND crashes + 1 >= {MAX_CRASHES} THEN 'poison'
        WHEN {charge} AND attempt >= max_attempts THEN 'max_attempts_exceeded' END"""


# For a row with a column ``verdict``.
STATE_AFTER = "CASE WHEN verdict IS NULL THEN 'queued' WHEN verdict = 'cancelled' THEN 'cancelled' ELSE 'failed' END"

COMPLETED_AFTER = "CASE WHEN verdict IS NOT NULL THEN clock_timestamp() END"

ERROR_AFTER = """CASE WHEN verdict IN ('poison', 'max_attempts_exceeded') THEN jsonb_build_object(
    'code', verdict, 'retryable', false, 'attempt', attempt,
    'message', CASE verdict
        WHEN 'poison' THEN 'every worker that ran this job died, the last one while it ran it alone'
        ELSE 'every attempt failed: the worker was lost or its engine failed' END) END"""

# The events that the rows of ``ended`` are. The end of a job that came as a response is also a response's end, and that
# is what its own URL is told (``is_own``) unless it names the events that it wants.
SAID = f"""
    SELECT ended.id, 'job.' || ended.state AS type, responses.job_id IS NULL AS is_own
    FROM ended LEFT JOIN responses ON responses.job_id = ended.id WHERE NOT ended.is_quiet
    UNION ALL
    SELECT ended.id, {EVENT_TYPE}, TRUE FROM ended JOIN responses ON responses.job_id = ended.id
    WHERE NOT ended.is_quiet
"""

# What a statement with a table ``ended`` goes on with, whose rows are the jobs that are terminal now. One delivery for
# each (job, type, URL): a tenant's endpoint wins over the same URL given with the job.
CONCLUDED = f"""
terminal AS (
    INSERT INTO job_terminal (job_id, state, epoch) SELECT id, state, epoch FROM ended
), closed AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = ended.state, error = ended.error
    FROM ended
    WHERE attempts.job_id = ended.id AND attempts.epoch = ended.epoch AND attempts.ended_at IS NULL
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT id, state, epoch, jsonb_strip_nulls(jsonb_build_object('code', error -> 'code')) FROM ended
), spent AS (
    DELETE FROM job_checkpoints USING ended WHERE job_checkpoints.job_id = ended.id
), dead AS (
    INSERT INTO dead_letters (job_id, tenant_id, queue, code)
    SELECT id, tenant_id, queue, error ->> 'code' FROM ended WHERE error ->> 'code' = ANY(CAST(:dead AS text[]))
), said AS (
    {SAID}
), receivers AS (
    SELECT ended.id AS job_id, ended.tenant_id, said.type, endpoint.id AS endpoint_id, endpoint.url
    FROM ended JOIN said USING (id) JOIN webhook_endpoints AS endpoint USING (tenant_id)
    WHERE endpoint.disabled_at IS NULL AND endpoint.events && ARRAY[said.type, '*']::varchar[]
    UNION ALL
    SELECT ended.id, ended.tenant_id, said.type, NULL, ended.url
    FROM ended JOIN said USING (id) WHERE ended.url IS NOT NULL
        AND CASE WHEN ended.events IS NULL THEN said.is_own ELSE jsonb_exists(ended.events, said.type) END
), told AS (
    INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, job_id, type)
    SELECT DISTINCT ON (job_id, type, url)
        'evt_' || replace(gen_random_uuid()::text, '-', ''), tenant_id, endpoint_id, url, job_id, type
    FROM receivers
    ORDER BY job_id, type, url, endpoint_id NULLS LAST
)
SELECT id FROM ended
"""

# The columns of ``ended``, of a row of ``jobs`` as it is now. A quiet job's end is no event: it is a batch's line.
ENDED = """jobs.id, jobs.tenant_id, jobs.queue, jobs.state, jobs.epoch, jobs.error,
    jobs.output ->> 'finish_reason' AS finish_reason, jobs.webhook ->> 'url' AS url,
    NULLIF(jobs.webhook -> 'events', 'null') AS events, COALESCE(jobs.webhook -> 'events' = '[]', false) AS is_quiet"""

_CONCLUDE = text(f"WITH ended AS (SELECT {ENDED} FROM jobs WHERE id = ANY(CAST(:ids AS text[]))), {CONCLUDED}")


def conclude(connection: Connection, job_ids: Sequence[str]) -> None:
    """Record that these jobs, which this transaction made terminal, have ended."""
    if job_ids:
        connection.execute(_CONCLUDE, {"ids": list(job_ids), "dead": list(DEAD_LETTER_CODES)})
