"""The webhook outbox: it hands out deliveries that are due, and records the result of each attempt.

``store.jobs.terminal`` writes deliveries in the transaction that ends a job, the feature ``batches`` in that of
a batch, triggers in that of a rollout or a version. The sender (``sender``) sends, signs and schedules retries. This
module disables an endpoint that answers 410 Gone or has failed for days.

    pending ──▶ delivered
       │  ▲        │         redelivery: ``features.webhooks.delivery_log``, ``features.webhooks.redelivery``
       ▼  └────────┤
    failed ────────┘
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, text

from headrace.features.files.result_links import signed_link
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen
from headrace.store.schema.event_types import ENDPOINT_DISABLED, EVERY_EVENT
from headrace.store.seal import Seal
from headrace.store.tenants.signing_secrets import secret_context

log = structlog.get_logger(__name__)

GONE = 410

LINK_S = 7 * 86_400
"""How long links to the files of a job are good."""

ATTEMPTS_KEPT = 30
"""Number of attempts stored for a delivery: the last three rounds of ten."""

_ACTOR = "dispatcher"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event to send to one URL.

    ``subject_id``: the job (of a step its job), batch, endpoint, rollout or version of the event; ``status``: its
    state, if it has one. ``secrets`` sign the delivery, the newest first. ``attempt`` starts at 1, and again at 1 after
    a redelivery; ``num_tries`` is the number of all attempts including this one. ``is_refused``: the endpoint is
    disabled. ``is_locked``: this process lacks the encryption key of the secrets, so ``secrets`` is empty.
    ``traceparent``: the parent of its span, if the job or batch is traced. ``files``: those that the job made, with
    links that are good for a week.
    """

    id: str
    tenant_id: str
    endpoint_id: str | None
    url: str
    secrets: tuple[str, ...] = field(repr=False)
    type: str
    subject_id: str
    status: str
    created_at: datetime
    attempt: int
    num_tries: int
    is_refused: bool = False
    is_locked: bool = False
    traceparent: str | None = None
    files: Sequence[Mapping[str, Any]] = ()

    @property
    def receiver(self) -> str:
        """The receiver's name in ``take_due``: the tenant, and the endpoint or the host of the URL."""
        return f"{self.tenant_id} {self.endpoint_id or self.url.split('/', 3)[2].lower()}"


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of an attempt. ``status``: HTTP status, None without an answer. ``error``: None if delivered."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None


# The receiver of a delivery, as in its index.
_RECEIVER = "(tenant_id || ' ' || COALESCE(endpoint_id, lower(split_part(url, '/', 3))))"

# Number of oldest deliveries to look at first. If all of them are for busy receivers, the search goes by receiver.
# Enough for a few concurrent senders, and so few that the planner always uses the index.
LOOKED_AT = 64

# Deliveries that have been due for longest, without busy receivers.
_LONGEST_DUE = f"""
WITH found AS (
    SELECT id FROM (
        SELECT id, tenant_id, {_RECEIVER} AS receiver FROM webhook_deliveries
        WHERE state = 'pending' ORDER BY next_attempt_at LIMIT :looked_at
    ) AS longest_due
    WHERE tenant_id <> ALL(CAST(:busy_tenants AS text[])) AND receiver <> ALL(CAST(:busy AS text[]))
"""

# Due deliveries of each receiver that is not busy. One index step for each receiver, whatever their number of rows.
_BY_RECEIVER = f"""
WITH RECURSIVE receivers (receiver) AS (
    (SELECT {_RECEIVER} FROM webhook_deliveries WHERE state = 'pending' ORDER BY 1 LIMIT 1)
    UNION ALL
    SELECT following.receiver FROM receivers CROSS JOIN LATERAL (
        SELECT {_RECEIVER} AS receiver FROM webhook_deliveries
        WHERE state = 'pending' AND {_RECEIVER} > receivers.receiver ORDER BY 1 LIMIT 1
    ) AS following
), found AS (
    SELECT longest_due.id FROM receivers CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries
        WHERE state = 'pending' AND {_RECEIVER} = receivers.receiver AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT :limit
    ) AS longest_due
    WHERE split_part(receivers.receiver, ' ', 1) <> ALL(CAST(:busy_tenants AS text[]))
        AND receivers.receiver <> ALL(CAST(:busy AS text[]))
"""

# Takes the deliveries that were found: their next attempt moves into the future. If the sender dies, they are due then.
_TAKE = """
), due AS (
    SELECT id, next_attempt_at FROM webhook_deliveries
    WHERE id = ANY (ARRAY(SELECT id FROM found)) AND state = 'pending' AND next_attempt_at <= now()
    ORDER BY next_attempt_at LIMIT :limit FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE webhook_deliveries AS delivery
    SET attempts = attempts + 1, next_attempt_at = clock_timestamp() + make_interval(secs => :lease_s)
    FROM due WHERE delivery.id = due.id AND delivery.state = 'pending'
    RETURNING delivery.*, due.next_attempt_at AS due_at
)
SELECT
    taken.id, taken.tenant_id, taken.endpoint_id, COALESCE(endpoint.url, taken.url) AS url,
    CASE WHEN endpoint.id IS NOT NULL THEN
        ARRAY[endpoint.secret, CASE WHEN endpoint.old_secret_until > now() THEN endpoint.old_secret END]
    ELSE
        ARRAY[COALESCE(rotated.secret, tenants.webhook_secret),
            CASE WHEN rotated.old_secret_until > now() THEN rotated.old_secret END]
    END AS secrets,
    taken.type, taken.job_id,
    COALESCE(
        jobs.parent_id, taken.job_id, taken.batch_id, taken.about_endpoint_id, taken.registry_id) AS subject_id,
    COALESCE(flow.state, jobs.state, split_part(taken.type, '.', 2)) AS status, taken.created_at,
    taken.attempts - taken.attempts_before AS attempt, taken.attempts AS num_tries,
    endpoint.disabled_at IS NOT NULL AS is_refused,
    COALESCE(rotated.secret, tenants.webhook_secret) AS link_secret,
    (SELECT jsonb_agg(jsonb_build_object(
        'index', position, 'name', filename, 'media_type', media_type, 'bytes', num_bytes) ORDER BY position)
        FROM files WHERE result_of = taken.job_id) AS files,
    COALESCE(jobs.traceparent, batches.traceparent) AS traceparent
FROM taken
LEFT JOIN jobs ON jobs.id = taken.job_id
LEFT JOIN jobs AS flow ON flow.id = jobs.parent_id
LEFT JOIN batches ON batches.id = taken.batch_id
JOIN tenants ON tenants.id = taken.tenant_id
LEFT JOIN webhook_secrets AS rotated ON rotated.tenant_id = taken.tenant_id
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = taken.endpoint_id
ORDER BY taken.due_at
"""

_TAKE_LONGEST_DUE, _TAKE_BY_RECEIVER = (text(found + _TAKE) for found in (_LONGEST_DUE, _BY_RECEIVER))


# Part of the statements below: stores the attempt and deletes old ones.
_ATTEMPT_STORED = """
tried AS (
    INSERT INTO webhook_attempts (tenant_id, delivery_id, attempt, at, duration_ms, status, error)
    SELECT tenant_id, id, :num_tries, :at, :duration_ms, CAST(:status AS int), CAST(:error AS text) FROM settled
), deleted AS (
    DELETE FROM webhook_attempts WHERE delivery_id = :id AND attempt <= :num_tries - :kept
)
"""

# Records a delivery that succeeded, and clears the failures of its endpoint.
_DELIVERED = text(f"""
WITH settled AS (
    UPDATE webhook_deliveries
    SET state = 'delivered', delivered_at = now(), last_status = :status, last_error = NULL
    WHERE id = :id AND state = 'pending'
    RETURNING id, tenant_id
), {_ATTEMPT_STORED}
UPDATE webhook_endpoints SET failing_since = NULL, last_failed_at = NULL
WHERE id = :endpoint_id AND failing_since IS NOT NULL
""")

# Only the newest attempt may change the delivery: a later one may be running, or a redelivery was requested.
_IS_NEWEST = """id = :id AND state = 'pending' AND attempts = :num_tries AND attempts - attempts_before = :attempt"""

# Records a failed attempt. Locks the endpoint before the delivery, like ``recover`` and the removal of an endpoint: the
# other order could deadlock. An endpoint without an attempt since an old failure has not been failing since then.
_FAILED = text(f"""
WITH endpoint AS MATERIALIZED (
    SELECT id FROM webhook_endpoints WHERE id = :endpoint_id FOR NO KEY UPDATE
), settled AS (
    UPDATE webhook_deliveries SET
        state = CASE WHEN CAST(:retry_in_s AS float8) IS NULL THEN 'failed' ELSE 'pending' END,
        next_attempt_at = COALESCE(now() + make_interval(secs => CAST(:retry_in_s AS float8)), next_attempt_at),
        last_status = CAST(:status AS int), last_error = CAST(:error AS text)
    WHERE (SELECT count(*) FROM endpoint) >= 0 AND {_IS_NEWEST}
    RETURNING id, tenant_id, endpoint_id
), {_ATTEMPT_STORED}
UPDATE webhook_endpoints AS failing SET
    failing_since = CASE
        WHEN last_failed_at > now() - make_interval(secs => :patience_s) THEN COALESCE(failing_since, now())
        ELSE now() END,
    last_failed_at = now()
FROM settled WHERE failing.id = settled.endpoint_id
RETURNING failing.id, failing.failing_since < now() - make_interval(secs => :patience_s) AS is_over
""")

# Disables an endpoint.
_DISABLE = text("""
UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = :reason
WHERE tenant_id = :tenant_id AND id = :id AND disabled_at IS NULL RETURNING id
""")

# Adds deliveries of the event to the tenant's other endpoints.
_NOTIFY_OTHERS = text(f"""
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, about_endpoint_id, type)
SELECT 'evt_' || replace(gen_random_uuid()::text, '-', ''), other.tenant_id, other.id, other.url, disabled.id,
    '{ENDPOINT_DISABLED}'
FROM webhook_endpoints AS disabled JOIN webhook_endpoints AS other USING (tenant_id)
WHERE tenant_id = :tenant_id AND disabled.id = :id AND other.disabled_at IS NULL
    AND other.events && ARRAY['{ENDPOINT_DISABLED}', '{EVERY_EVENT}']::varchar[]
""")

# Fails a delivery to a disabled endpoint.
_REFUSED = text(f"""
UPDATE webhook_deliveries SET
    state = 'failed', attempts = attempts - 1, last_status = NULL, last_error = 'the endpoint is disabled'
WHERE {_IS_NEWEST}
    AND EXISTS (SELECT FROM webhook_endpoints WHERE id = endpoint_id AND disabled_at IS NOT NULL)
""")

# Returns deliveries that were taken and not attempted.
_POSTPONE = text("""
UPDATE webhook_deliveries
SET attempts = attempts - 1, next_attempt_at = clock_timestamp() + make_interval(secs => :by_s)
WHERE id = ANY(CAST(:ids AS text[])) AND state = 'pending' AND attempts > attempts_before
""")


DUE = """
(SELECT next_attempt_at FROM webhook_deliveries WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1) <= now()
    IS TRUE
"""
"""The SQL condition that a delivery is due: the first entry of an index."""

# Read how long the delivery that has been due for longest has been due.
_OLDEST_DUE = text("""
SELECT CAST(extract(epoch FROM now() - next_attempt_at) AS float8) FROM webhook_deliveries
WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1
""")


def oldest_due_s(db: Database) -> float:
    """Return how long the oldest due webhook delivery has been due, in seconds; 0 if none is. Raises Unavailable."""
    with db.autocommit() as connection:
        return max(0.0, float(connection.execute(_OLDEST_DUE).scalar_one_or_none() or 0.0))


def take_due(
    db: Database, limit: int, lease_s: float, *, busy: Iterable[str] = (), busy_tenants: Iterable[str] = ()
) -> list[Delivery]:
    """Take due deliveries, oldest first. Each is due again in ``lease_s`` unless its attempt is recorded.

    Deliveries for ``busy`` receivers and of ``busy_tenants`` are not taken.
    """
    values = {"limit": limit, "lease_s": float(lease_s), "busy": list(busy), "busy_tenants": list(busy_tenants)}
    with db.autocommit() as connection:
        rows = connection.execute(_TAKE_LONGEST_DUE, values | {"looked_at": LOOKED_AT}).mappings().all()
        if not rows and (values["busy"] or values["busy_tenants"]):
            rows = connection.execute(_TAKE_BY_RECEIVER, values).mappings().all()
    return [_delivery(row, db.seal) for row in rows]


def _delivery(row: RowMapping, seal: Seal) -> Delivery:
    context = secret_context(row["tenant_id"], row["endpoint_id"])
    fields = {name: value for name, value in row.items() if name not in ("link_secret", "job_id")} | {"files": ()}
    try:
        secrets = [seal.open_text(secret, context) for secret in row["secrets"] if secret]
        if row["files"]:
            fields["files"] = _linked(row, seal.open_text(row["link_secret"], secret_context(row["tenant_id"])))
    except CannotOpen as error:
        log.error("webhook.secret_not_opened", delivery_id=row["id"], error=error.message)
        return Delivery(**{**fields, "secrets": ()}, is_locked=True)
    return Delivery(**{**fields, "secrets": tuple(secrets)})


def _linked(row: RowMapping, secret: str) -> list[dict[str, Any]]:
    """Return the files of a job with links. Each attempt has the same ones."""
    expires = int(row["created_at"].timestamp()) + LINK_S
    place = (secret, row["tenant_id"], row["job_id"])
    return [
        {**file, "url": signed_link(*place, file["index"], expires), "url_expires_at": expires} for file in row["files"]
    ]


def record_delivered(db: Database, delivery: Delivery, result: AttemptResult) -> None:
    """Record a delivery that the receiver accepted."""
    with db.autocommit(tenant_id=delivery.tenant_id) as connection:
        connection.execute(_DELIVERED, _values(delivery, result))


def record_failed(
    db: Database, delivery: Delivery, result: AttemptResult, *, retry_in_s: float | None, patience_s: float
) -> str | None:
    """Record a failed attempt. The next one is due in ``retry_in_s``; None: the delivery has failed.

    The endpoint is disabled if it answered 410 Gone, or if all attempts of ``patience_s`` seconds failed. Then the
    reason is returned.
    """
    values = _values(delivery, result) | {
        "attempt": delivery.attempt,
        "retry_in_s": retry_in_s,
        "patience_s": float(patience_s),
    }
    with db.begin(tenant_id=delivery.tenant_id) as connection:
        endpoint = connection.execute(_FAILED, values).one_or_none()
        if endpoint is None or not (result.status == GONE or endpoint.is_over):
            return None
        reason = "gone" if result.status == GONE else "failing"
        return reason if _disable(connection, delivery.tenant_id, endpoint.id, reason) else None


def _disable(connection: Connection, tenant_id: str, endpoint_id: str, reason: str) -> bool:
    """Disable an endpoint, and send the event to the tenant's other ones. Returns False if it was disabled already."""
    values = {"tenant_id": tenant_id, "id": endpoint_id}
    if connection.execute(_DISABLE, values | {"reason": reason}).scalar_one_or_none() is None:
        return False
    connection.execute(_NOTIFY_OTHERS, values)
    record(connection, tenant_id, _ACTOR, "webhook_endpoint.disabled", endpoint_id, {"reason": reason})
    return True


def record_refused(db: Database, delivery: Delivery) -> None:
    """Fail a delivery that was not attempted, if its endpoint is still disabled."""
    values = {"id": delivery.id, "num_tries": delivery.num_tries, "attempt": delivery.attempt}
    with db.autocommit(tenant_id=delivery.tenant_id) as connection:
        connection.execute(_REFUSED, values)


def postpone(db: Database, delivery_ids: Sequence[str], by_s: float) -> None:
    """Return deliveries that were taken and not attempted. They are due in ``by_s``; no attempt is counted."""
    if delivery_ids:
        with db.autocommit() as connection:
            connection.execute(_POSTPONE, {"ids": list(delivery_ids), "by_s": float(by_s)})


def _values(delivery: Delivery, result: AttemptResult) -> dict[str, object]:
    return {
        "id": delivery.id,
        "endpoint_id": delivery.endpoint_id,
        "num_tries": delivery.num_tries,
        "kept": ATTEMPTS_KEPT,
        "at": result.at,
        "duration_ms": result.duration_ms,
        "status": result.status,
        "error": result.error,
    }
