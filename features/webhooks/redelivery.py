"""Deliveries on request: a test event, and the events that an endpoint missed.

Missed events are found in jobs, batches, rollouts and versions, not only in the outbox: no delivery is written for an
endpoint that is disabled or does not exist yet. So events can be recovered as long as their jobs are stored. Events
older than the retention of deliveries (``features.retention.retention``) are left out, because their delivery cannot be
checked.
"""

from dataclasses import dataclass

from sqlalchemy import text

from headrace.features.webhooks.delivery_log import RESTARTED, DeliveryRecord, disabled, get_delivery
from headrace.features.webhooks.endpoints import lock_endpoint
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.jobs.terminal import ENDED, EVENTS_OF_ENDED
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.event_types import EVERY_EVENT, TEST

# The row of an event may be older than the end of its job by this much.
_MARGIN_S = 60.0

_BATCH_ENDS = ", ".join(f"'{status}'" for status in BatchStatus if status.is_terminal)

# Adds a test delivery.
_TEST = text("""
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, about_endpoint_id, type)
VALUES (:id, :tenant_id, CAST(:endpoint_id AS varchar), :url, CAST(:endpoint_id AS varchar), :type)
""")


# Restarts failed deliveries of the range, except test events.
RESTART = text(f"""
UPDATE webhook_deliveries SET {RESTARTED} WHERE id = ANY (ARRAY(
    SELECT id FROM webhook_deliveries
    WHERE endpoint_id = :endpoint_id AND tenant_id = :tenant_id AND type <> :test
        AND created_at >= to_timestamp(:since_s)
        AND (CAST(:until_s AS float8) IS NULL OR created_at < to_timestamp(CAST(:until_s AS float8)))
        AND (state = 'failed'
            OR state = 'delivered' AND delivered_at < to_timestamp(CAST(:delivered_before_s AS float8)))
    ORDER BY created_at LIMIT :limit FOR NO KEY UPDATE
))
""")

# Adds deliveries for events of the range that have none.
_MISSING = text(f"""
WITH ended AS (
    SELECT {ENDED}, jobs.completed_at AS at FROM jobs
    WHERE jobs.tenant_id = :tenant_id AND jobs.input_purged_at IS NULL AND jobs.output_purged_at IS NULL
        AND jobs.completed_at >= to_timestamp(:since_s)
        AND (CAST(:until_s AS float8) IS NULL OR jobs.completed_at < to_timestamp(CAST(:until_s AS float8)))
), said AS (
    {EVENTS_OF_ENDED}
), happened AS (
    SELECT said.id AS job_id, NULL AS batch_id, NULL AS registry_id, said.type, ended.at FROM said JOIN ended USING (id)
    UNION ALL
    SELECT NULL, id, NULL, 'batch.' || status, COALESCE(completed_at, failed_at, expired_at, cancelled_at)
    FROM batches WHERE tenant_id = :tenant_id AND purged_at IS NULL AND status IN ({_BATCH_ENDS})
    UNION ALL
    SELECT NULL, NULL, id, 'rollout.started', started_at FROM rollouts
    UNION ALL
    SELECT NULL, NULL, id, 'rollout.' || state, ended_at FROM rollouts WHERE ended_at IS NOT NULL
    UNION ALL
    SELECT NULL, NULL, model || '@' || version, 'version.rejected', state_at FROM model_versions
    WHERE state = 'rejected'
), missing AS (
    SELECT endpoint.tenant_id, endpoint.id AS endpoint_id, endpoint.url, happened.*
    FROM happened JOIN webhook_endpoints AS endpoint ON endpoint.id = :endpoint_id AND tenant_id = :tenant_id
    WHERE at >= GREATEST(to_timestamp(:since_s), now() - make_interval(secs => CAST(:kept_s AS float8)))
        AND (CAST(:until_s AS float8) IS NULL OR at < to_timestamp(CAST(:until_s AS float8)))
        AND (type = ANY (endpoint.events) OR registry_id IS NULL AND '{EVERY_EVENT}' = ANY (endpoint.events))
        AND NOT EXISTS (
            SELECT FROM webhook_deliveries AS sent WHERE sent.job_id = happened.job_id AND sent.type = happened.type
                AND (sent.endpoint_id = endpoint.id OR sent.url = endpoint.url))
        AND NOT EXISTS (
            SELECT FROM webhook_deliveries AS sent WHERE sent.batch_id = happened.batch_id AND sent.type = happened.type
                AND (sent.endpoint_id = endpoint.id OR sent.url = endpoint.url))
        AND NOT EXISTS (
            SELECT FROM webhook_deliveries AS sent
            WHERE sent.endpoint_id = endpoint.id AND sent.registry_id = happened.registry_id
                AND sent.type = happened.type AND sent.created_at >= happened.at - make_interval(secs => {_MARGIN_S}))
    ORDER BY at LIMIT :limit
)
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, job_id, batch_id, registry_id, type, created_at)
SELECT
    'evt_' || replace(gen_random_uuid()::text, '-', ''), tenant_id, endpoint_id, url, job_id, batch_id, registry_id,
    type, at
FROM missing
ON CONFLICT DO NOTHING
""")


def send_test(db: Database, tenant_id: str, endpoint_id: str, *, actor: str) -> DeliveryRecord:
    """Queue a ``webhook.test`` for an endpoint, even if it is not subscribed to it. Returns the delivery.

    Raises NotFound, and Conflict if the endpoint is disabled.
    """
    delivery_id = new_id("evt")
    with db.begin(tenant_id=tenant_id) as connection:
        endpoint = lock_endpoint(connection, tenant_id, endpoint_id)
        if endpoint.disabled_at is not None:
            raise disabled(endpoint_id)
        values = {"id": delivery_id, "tenant_id": tenant_id, "endpoint_id": endpoint_id, "url": endpoint.url}
        connection.execute(_TEST, values | {"type": TEST})
        record(connection, tenant_id, actor, "webhook_endpoint.tested", endpoint_id, {"delivery_id": delivery_id})
    return get_delivery(db, tenant_id, delivery_id)[0]


@dataclass(frozen=True, slots=True)
class MissedEvents:
    """Selects events to send again: those of a time range, in Unix seconds, that were not delivered.

    ``until_s`` None: until now. With ``delivered_before_s`` also events delivered before that time, so that repeating
    the request sends nothing twice.
    """

    since_s: int
    until_s: int | None = None
    delivered_before_s: int | None = None


def recover(
    db: Database,
    tenant_id: str,
    endpoint_id: str,
    missed: MissedEvents,
    *,
    kept_s: float | None,
    limit: int,
    actor: str,
) -> int:
    """Queue an endpoint's missed events, oldest first, at most ``limit``. Returns their number.

    ``kept_s``: retention of finished deliveries in seconds; None: for ever. A queued event is not missed any more, so a
    repeated call continues after it. Raises NotFound, and Conflict if the endpoint is disabled.
    """
    with db.begin(tenant_id=tenant_id) as connection:
        endpoint = lock_endpoint(connection, tenant_id, endpoint_id)
        if endpoint.disabled_at is not None:
            raise disabled(endpoint_id)
        values = {
            "tenant_id": tenant_id,
            "endpoint_id": endpoint_id,
            "since_s": missed.since_s,
            "until_s": missed.until_s,
            "delivered_before_s": missed.delivered_before_s,
            "test": TEST,
            "kept_s": None if kept_s is None else max(0.0, kept_s - _MARGIN_S),
        }
        num_queued = connection.execute(RESTART, values | {"limit": limit}).rowcount
        if num_queued < limit:
            num_queued += connection.execute(_MISSING, values | {"limit": limit - num_queued}).rowcount
        detail = {"since": missed.since_s, "until": missed.until_s, "num_queued": num_queued}
        record(connection, tenant_id, actor, "webhook_endpoint.recovered", endpoint_id, detail)
    return num_queued
