"""The outbox of webhooks: deliveries that are due are handed out, and settled with what came of each try.

They are written by ``store.jobs.terminal`` in the transaction that ends a job, and by ``store.batches.batch_steps``.
Sending, signing and the schedule of retries are the sender's. An endpoint that is gone, or that has failed for days, is
disabled here.

    pending ──▶ delivered
       │  ▲        │         asked for again: ``store.webhooks.delivery_log``, ``store.webhooks.redelivery``
       ▼  └────────┤
    failed ────────┘
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy import Connection, RowMapping, text

from store.audit.audit import record
from store.db.database import Database
from store.encryption.vault import Vault
from store.errors import CannotOpen
from store.schema.webhook_events import ENDPOINT_DISABLED, EVERY_EVENT
from store.tenants.webhook_secrets import secret_context

log = structlog.get_logger(__name__)

GONE = 410

ATTEMPTS_KEPT = 30
"""Of a delivery, its last ones: three rounds of ten."""

_ACTOR = "dispatcher"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event to send to one URL.

    ``subject_id`` is of the job, batch or endpoint that it tells of, and ``status`` says how that ended, if it did.
    ``secrets`` sign it, the newest first. ``attempt`` is 1 at the first try and after it was asked for again;
    ``num_tries`` counts them all, this one included. ``is_refused``: its endpoint was disabled meanwhile.
    ``is_locked``: its secrets are sealed with a key that this process was not given; there are none then.
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

    @property
    def receiver(self) -> str:
        """Who is to take it, under the name by which ``take_due`` passes it over: an endpoint, or a tenant's host."""
        return f"{self.tenant_id} {self.endpoint_id or self.url.split('/', 3)[2].lower()}"


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a try. ``status`` is None if there was no answer, ``error`` is None if it was delivered."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None


# As its index has it (revision 0016).
_RECEIVER = "(tenant_id || ' ' || COALESCE(endpoint_id, lower(split_part(url, '/', 3))))"

# Of the longest due; where all of these are for busy receivers, the others are sought by receiver. Enough for a few
# senders that look at once, and so few that the planner takes them from the index whatever it knows of the table.
LOOKED_AT = 64

_LONGEST_DUE = f"""
WITH found AS (
    SELECT id FROM (
        SELECT id, tenant_id, {_RECEIVER} AS receiver FROM webhook_deliveries
        WHERE state = 'pending' ORDER BY next_attempt_at LIMIT :looked_at
    ) AS longest_due
    WHERE tenant_id <> ALL(CAST(:busy_tenants AS text[])) AND receiver <> ALL(CAST(:busy AS text[]))
"""

# One step in the index from each receiver to the next, however much is due to them.
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

# Taking a delivery moves it into the future: if its sender dies, it comes due again by itself.
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
    taken.type, COALESCE(taken.job_id, taken.batch_id, taken.about_endpoint_id) AS subject_id,
    COALESCE(jobs.state, split_part(taken.type, '.', 2)) AS status, taken.created_at,
    taken.attempts - taken.attempts_before AS attempt, taken.attempts AS num_tries,
    endpoint.disabled_at IS NOT NULL AS is_refused
FROM taken
LEFT JOIN jobs ON jobs.id = taken.job_id
JOIN tenants ON tenants.id = taken.tenant_id
LEFT JOIN webhook_secrets AS rotated ON rotated.tenant_id = taken.tenant_id
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = taken.endpoint_id
ORDER BY taken.due_at
"""

_TAKE_LONGEST_DUE, _TAKE_BY_RECEIVER = (text(found + _TAKE) for found in (_LONGEST_DUE, _BY_RECEIVER))


def take_due(
    db: Database, limit: int, lease_s: float, *, busy: Iterable[str] = (), busy_tenants: Iterable[str] = ()
) -> list[Delivery]:
    """Take deliveries that are due, longest due first; each comes due again in ``lease_s`` unless it is settled.

    Those for ``busy`` receivers and those of ``busy_tenants`` stay where they are.
    """
    values = {"limit": limit, "lease_s": float(lease_s), "busy": list(busy), "busy_tenants": list(busy_tenants)}
    with db.autocommit() as connection:
        rows = connection.execute(_TAKE_LONGEST_DUE, values | {"looked_at": LOOKED_AT}).mappings().all()
        if not rows and (values["busy"] or values["busy_tenants"]):
            rows = connection.execute(_TAKE_BY_RECEIVER, values).mappings().all()
    return [_delivery(row, db.vault) for row in rows]


def _delivery(row: RowMapping, vault: Vault) -> Delivery:
    place = secret_context(row["tenant_id"], row["endpoint_id"])
    try:
        secrets = [vault.open_text(secret, place) for secret in row["secrets"] if secret]
    except CannotOpen as error:
        log.error("webhook.secret_not_opened", delivery_id=row["id"], error=error.message)
        return Delivery(**{**row, "secrets": ()}, is_locked=True)
    return Delivery(**{**row, "secrets": tuple(secrets)})


_NOTED = """
tried AS (
    INSERT INTO webhook_attempts (tenant_id, delivery_id, attempt, at, duration_ms, status, error)
    SELECT tenant_id, id, :num_tries, :at, :duration_ms, CAST(:status AS int), CAST(:error AS text) FROM settled
), forgotten AS (
    DELETE FROM webhook_attempts WHERE delivery_id = :id AND attempt <= :num_tries - :kept
)
"""

_DELIVERED = text(f"""
WITH settled AS (
    UPDATE webhook_deliveries
    SET state = 'delivered', delivered_at = now(), last_status = :status, last_error = NULL
    WHERE id = :id AND state = 'pending'
    RETURNING id, tenant_id
), {_NOTED}
UPDATE webhook_endpoints SET failing_since = NULL, last_failed_at = NULL
WHERE id = :endpoint_id AND failing_since IS NOT NULL
""")


def delivered(db: Database, delivery: Delivery, tried: Tried) -> None:
    """Settle a delivery that the receiver took."""
    with db.autocommit(tenant_id=delivery.tenant_id) as connection:
        connection.execute(_DELIVERED, _values(delivery, tried))


# Only the try that was taken last has a say: another one may be on its way by now, or have been asked for.
_LAST = """id = :id AND state = 'pending' AND attempts = :num_tries AND attempts - attempts_before = :attempt"""

# The endpoint is locked before the delivery, as by ``recover`` and the removal of an endpoint. In the other order two
# of them could wait for each other.
# What failed once, long ago, and was not tried in between, has not failed ever since.
_FAILED = text(f"""
WITH endpoint AS MATERIALIZED (
    SELECT id FROM webhook_endpoints WHERE id = :endpoint_id FOR NO KEY UPDATE
), settled AS (
    UPDATE webhook_deliveries SET
        state = CASE WHEN CAST(:retry_in_s AS float8) IS NULL THEN 'failed' ELSE 'pending' END,
        next_attempt_at = COALESCE(now() + make_interval(secs => CAST(:retry_in_s AS float8)), next_attempt_at),
        last_status = CAST(:status AS int), last_error = CAST(:error AS text)
    WHERE (SELECT count(*) FROM endpoint) >= 0 AND {_LAST}
    RETURNING id, tenant_id, endpoint_id
), {_NOTED}
UPDATE webhook_endpoints AS failing SET
    failing_since = CASE
        WHEN last_failed_at > now() - make_interval(secs => :patience_s) THEN COALESCE(failing_since, now())
        ELSE now() END,
    last_failed_at = now()
FROM settled WHERE failing.id = settled.endpoint_id
RETURNING failing.id, failing.failing_since < now() - make_interval(secs => :patience_s) AS is_over
""")


def failed(
    db: Database, delivery: Delivery, tried: Tried, *, retry_in_s: float | None, patience_s: float
) -> str | None:
    """Note a failed try: it comes due again in ``retry_in_s``, or is given up if that is None.

    Its endpoint is disabled if it answered 410 Gone, or if nothing but failures came of it for ``patience_s``; then the
    reason is returned.
    """
    values = _values(delivery, tried) | {
        "attempt": delivery.attempt,
        "retry_in_s": retry_in_s,
        "patience_s": float(patience_s),
    }
    with db.begin(tenant_id=delivery.tenant_id) as connection:
        endpoint = connection.execute(_FAILED, values).one_or_none()
        if endpoint is None or not (tried.status == GONE or endpoint.is_over):
            return None
        reason = "gone" if tried.status == GONE else "failing"
        return reason if _disable(connection, delivery.tenant_id, endpoint.id, reason) else None


_DISABLE = text("""
UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = :reason
WHERE tenant_id = :tenant_id AND id = :id AND disabled_at IS NULL RETURNING id
""")

_TELL_OTHERS = text(f"""
INSERT INTO webhook_deliveries (id, tenant_id, endpoint_id, url, about_endpoint_id, type)
SELECT 'evt_' || replace(gen_random_uuid()::text, '-', ''), other.tenant_id, other.id, other.url, disabled.id,
    '{ENDPOINT_DISABLED}'
FROM webhook_endpoints AS disabled JOIN webhook_endpoints AS other USING (tenant_id)
WHERE tenant_id = :tenant_id AND disabled.id = :id AND other.disabled_at IS NULL
    AND other.events && ARRAY['{ENDPOINT_DISABLED}', '{EVERY_EVENT}']::varchar[]
""")


def _disable(connection: Connection, tenant_id: str, endpoint_id: str, reason: str) -> bool:
    """Disable an endpoint and tell its owner; return False if it was disabled already."""
    values = {"tenant_id": tenant_id, "id": endpoint_id}
    if connection.execute(_DISABLE, values | {"reason": reason}).scalar_one_or_none() is None:
        return False
    connection.execute(_TELL_OTHERS, values)
    record(connection, tenant_id, _ACTOR, "webhook_endpoint.disabled", endpoint_id, {"reason": reason})
    return True


_REFUSED = text(f"""
UPDATE webhook_deliveries SET
    state = 'failed', attempts = attempts - 1, last_status = NULL, last_error = 'the endpoint is disabled'
WHERE {_LAST}
    AND EXISTS (SELECT FROM webhook_endpoints WHERE id = endpoint_id AND disabled_at IS NOT NULL)
""")


def refused(db: Database, delivery: Delivery) -> None:
    """Give up a delivery to an endpoint that is disabled; it was not tried. If it is enabled by now, it comes again."""
    values = {"id": delivery.id, "num_tries": delivery.num_tries, "attempt": delivery.attempt}
    with db.autocommit(tenant_id=delivery.tenant_id) as connection:
        connection.execute(_REFUSED, values)


_POSTPONE = text("""
UPDATE webhook_deliveries
SET attempts = attempts - 1, next_attempt_at = clock_timestamp() + make_interval(secs => :by_s)
WHERE id = ANY(CAST(:ids AS text[])) AND state = 'pending' AND attempts > attempts_before
""")


def postpone(db: Database, delivery_ids: Sequence[str], by_s: float) -> None:
    """Give deliveries back that were taken and not tried; they come due in ``by_s`` and no try is counted."""
    if delivery_ids:
        with db.autocommit() as connection:
            connection.execute(_POSTPONE, {"ids": list(delivery_ids), "by_s": float(by_s)})


def _values(delivery: Delivery, tried: Tried) -> dict[str, object]:
    return {
        "id": delivery.id,
        "endpoint_id": delivery.endpoint_id,
        "num_tries": delivery.num_tries,
        "kept": ATTEMPTS_KEPT,
        "at": tried.at,
        "duration_ms": tried.duration_ms,
        "status": tried.status,
        "error": tried.error,
    }
