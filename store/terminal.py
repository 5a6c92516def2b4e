"""What every terminal transition leaves behind: the terminal row, the closed attempt, the event, the webhook outbox.

Called in the transaction that moved the job rows, whoever moved them (worker, canceller, sweep). A second terminal row
for a job violates the primary key and takes that whole transaction back.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

# One delivery for each (job, URL): a tenant's endpoint wins over the same URL given with the job.
_CONCLUDE = text("""
WITH ended AS (
    SELECT id, tenant_id, state, epoch, error, 'job.' || state AS type, webhook ->> 'url' AS url
    FROM jobs WHERE id = ANY(CAST(:ids AS text[]))
), terminal AS (
    INSERT INTO job_terminal (job_id, state, epoch) SELECT id, state, epoch FROM ended
), closed AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = ended.state, error = ended.error
    FROM ended
    WHERE attempts.job_id = ended.id AND attempts.epoch = ended.epoch AND attempts.ended_at IS NULL
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT id, state, epoch, jsonb_strip_nulls(jsonb_build_object('code', error -> 'code')) FROM ended
), receivers AS (
    SELECT ended.id AS job_id, ended.tenant_id, ended.type, endpoint.id AS endpoint_id, endpoint.url
    FROM ended JOIN webhook_endpoints AS endpoint USING (tenant_id)
    WHERE endpoint.disabled_at IS NULL AND endpoint.events && ARRAY[ended.type, '*']::varchar[]
    UNION ALL
    SELECT id, tenant_id, type, NULL, url FROM ended WHERE url IS NOT NULL
)
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, job_id, type)
SELECT DISTINCT ON (job_id, url)
    'evt_' || replace(gen_random_uuid()::text, '-', ''), tenant_id, endpoint_id, url, job_id, type
FROM receivers
ORDER BY job_id, url, endpoint_id NULLS LAST
""")


def conclude(connection: Connection, job_ids: Sequence[str]) -> None:
    """Record that these jobs, which this transaction made terminal, have ended."""
    if job_ids:
        connection.execute(_CONCLUDE, {"ids": list(job_ids)})
