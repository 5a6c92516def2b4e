"""Webhooks: a tenant's endpoints, and the outbox of deliveries with its retry state.

Deliveries are written by ``store.terminal`` in the transaction that ends a job. Here they are handed out and settled;
sending, signing and the schedule of retries are the sender's.
"""

import base64
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import text

from store.audit import record
from store.batch_states import BatchStatus
from store.db import Database
from store.errors import Conflict, InvalidRequest, NotFound
from store.ids import new_id
from store.responses import EVENT_TYPES as RESPONSE_EVENTS
from store.states import JobState

EVENT_TYPES: frozenset[str] = (
    RESPONSE_EVENTS
    | {f"job.{state}" for state in JobState if state.is_terminal}
    | {f"batch.{status}" for status in BatchStatus if status.is_terminal}
)
EVERY_EVENT = "*"
GONE = 410


def new_secret() -> str:
    """Return a signing secret as Standard Webhooks 1.0.0 writes them; 48 bytes need no padding in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(48)).decode()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL of a tenant that wants events of these types; ``*`` means all."""

    id: str
    tenant_id: str
    url: str
    secret: str = field(repr=False)
    events: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event to send to one URL. ``attempt`` is 1 at the first try.

    ``subject_id`` is of the job or the batch that ended, and ``status`` says how.
    """

    id: str
    tenant_id: str
    url: str
    secret: str = field(repr=False)
    type: str
    subject_id: str
    status: str
    created_at: datetime
    attempt: int


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery as its owner sees it; ``state`` is pending, delivered or failed."""

    id: str
    endpoint_id: str | None
    url: str
    job_id: str | None
    batch_id: str | None
    type: str
    state: str
    attempts: int
    next_attempt_at: datetime
    last_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


_CREATE = text("""
INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events)
VALUES (:id, :tenant_id, :url, :secret, CAST(:events AS varchar[]))
ON CONFLICT (tenant_id, url) DO NOTHING
RETURNING id, tenant_id, url, secret, events, created_at, disabled_at
""")


def create_endpoint(
    db: Database, tenant_id: str, *, url: str, events: Iterable[str] = (EVERY_EVENT,), actor: str
) -> Endpoint:
    """Add an endpoint with a new secret; raise InvalidRequest for an unknown event, Conflict if the URL is there."""
    wanted = sorted(set(events))
    if unknown := [event for event in wanted if event not in EVENT_TYPES | {EVERY_EVENT}]:
        raise InvalidRequest(f"unknown webhook events: {', '.join(unknown)}", param="events")
    if not wanted:
        raise InvalidRequest("name at least one webhook event, or *", param="events")
    values = {"id": new_id("we"), "tenant_id": tenant_id, "url": url, "secret": new_secret(), "events": wanted}
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_CREATE, values).mappings().one_or_none()
        if row is None:
            raise Conflict("this URL is a webhook endpoint already", param="url")
        record(connection, tenant_id, actor, "webhook_endpoint.created", row["id"], {"events": wanted})
    return Endpoint(**{**row, "events": tuple(row["events"])})


_ENDPOINTS = text("""
SELECT id, tenant_id, url, secret, events, created_at, disabled_at
FROM webhook_endpoints WHERE tenant_id = :tenant_id ORDER BY id
""")


def list_endpoints(db: Database, tenant_id: str) -> list[Endpoint]:
    """Return the tenant's endpoints, oldest first."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_ENDPOINTS, {"tenant_id": tenant_id}).mappings().all()
    return [Endpoint(**{**row, "events": tuple(row["events"])}) for row in rows]


_DELETE = text("DELETE FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id RETURNING id")


def delete_endpoint(db: Database, tenant_id: str, endpoint_id: str, *, actor: str) -> None:
    """Remove an endpoint and its deliveries; raise NotFound if the tenant has none by that id."""
    with db.begin(tenant_id=tenant_id) as connection:
        values = {"tenant_id": tenant_id, "id": endpoint_id}
        if connection.execute(_DELETE, values).scalar_one_or_none() is None:
            raise NotFound(f"no webhook endpoint {endpoint_id}")
        record(connection, tenant_id, actor, "webhook_endpoint.deleted", endpoint_id, {})


# Taking a delivery moves it into the future: if its sender dies, it comes due again by itself.
_TAKE_DUE = text("""
WITH due AS (
    SELECT id, next_attempt_at FROM webhook_deliveries
    WHERE state = 'pending' AND next_attempt_at <= now()
        AND tenant_id || ' ' || lower(split_part(url, '/', 3)) <> ALL(CAST(:busy AS text[]))
    ORDER BY next_attempt_at LIMIT :limit FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE webhook_deliveries AS delivery
    SET attempts = attempts + 1, next_attempt_at = clock_timestamp() + make_interval(secs => :lease_s)
    FROM due WHERE delivery.id = due.id AND delivery.state = 'pending'
    RETURNING delivery.*, due.next_attempt_at AS due_at
)
SELECT
    taken.id, taken.tenant_id, taken.url, COALESCE(endpoint.secret, tenants.webhook_secret) AS secret, taken.type,
    COALESCE(taken.job_id, taken.batch_id) AS subject_id,
    COALESCE(jobs.state, split_part(taken.type, '.', 2)) AS status, taken.created_at, taken.attempts AS attempt
FROM taken
LEFT JOIN jobs ON jobs.id = taken.job_id
JOIN tenants ON tenants.id = taken.tenant_id
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = taken.endpoint_id
ORDER BY taken.due_at
""")


def receiver_of(tenant_id: str, url: str) -> str:
    """Return the name under which ``take_due`` knows a tenant's host; a slow one is passed over by it."""
    return f"{tenant_id} {url.split('/', 3)[2].lower()}"


def take_due(db: Database, limit: int, lease_s: float, *, busy: Iterable[str] = ()) -> list[Delivery]:
    """Take deliveries that are due, longest due first; each comes due again in ``lease_s`` unless it is settled.

    Those for ``busy`` receivers stay where they are.
    """
    values = {"limit": limit, "lease_s": float(lease_s), "busy": list(busy)}
    with db.autocommit() as connection:
        rows = connection.execute(_TAKE_DUE, values).mappings().all()
    return [Delivery(**row) for row in rows]


_DELIVERED = text("""
UPDATE webhook_deliveries
SET state = 'delivered', delivered_at = now(), last_status = :status, last_error = NULL
WHERE id = :id AND state = 'pending'
""")


def delivered(db: Database, delivery_id: str, status: int) -> None:
    """Settle a delivery that the receiver took."""
    with db.autocommit() as connection:
        connection.execute(_DELIVERED, {"id": delivery_id, "status": status})


_FAILED = text("""
UPDATE webhook_deliveries SET
    state = CASE WHEN CAST(:retry_in_s AS float8) IS NULL THEN 'failed' ELSE 'pending' END,
    next_attempt_at = COALESCE(now() + make_interval(secs => CAST(:retry_in_s AS float8)), next_attempt_at),
    last_status = CAST(:status AS int), last_error = CAST(:error AS text)
WHERE id = :id AND state = 'pending'
""")

_DISABLE = text("""
UPDATE webhook_endpoints SET disabled_at = now()
WHERE disabled_at IS NULL AND id = (SELECT endpoint_id FROM webhook_deliveries WHERE id = :id)
""")


def failed(db: Database, delivery_id: str, *, status: int | None, error: str | None, retry_in_s: float | None) -> None:
    """Note a failed try: it comes due again in ``retry_in_s``, or is given up if that is None.

    A receiver that answers 410 Gone wants no more: its endpoint is disabled.
    """
    values = {"id": delivery_id, "status": status, "error": error, "retry_in_s": retry_in_s}
    with db.begin() as connection:
        connection.execute(_FAILED, values)
        if status == GONE:
            connection.execute(_DISABLE, {"id": delivery_id})


_POSTPONE = text("""
UPDATE webhook_deliveries
SET attempts = attempts - 1, next_attempt_at = clock_timestamp() + make_interval(secs => :by_s)
WHERE id = ANY(CAST(:ids AS text[])) AND state = 'pending' AND attempts > 0
""")


def postpone(db: Database, delivery_ids: Sequence[str], by_s: float) -> None:
    """Give deliveries back that were taken and not tried; they come due in ``by_s`` and no try is counted."""
    if delivery_ids:
        with db.autocommit() as connection:
            connection.execute(_POSTPONE, {"ids": list(delivery_ids), "by_s": float(by_s)})


_DELIVERIES = text("""
SELECT
    id, endpoint_id, url, job_id, batch_id, type, state, attempts, next_attempt_at, last_status, last_error, created_at,
    delivered_at
FROM webhook_deliveries
WHERE tenant_id = :tenant_id AND (CAST(:job_id AS text) IS NULL OR job_id = :job_id)
ORDER BY created_at DESC, id LIMIT :limit
""")


def list_deliveries(db: Database, tenant_id: str, job_id: str | None = None, limit: int = 100) -> list[DeliveryRecord]:
    """Return the tenant's newest deliveries, of one job or of all, newest first."""
    values = {"tenant_id": tenant_id, "job_id": job_id, "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_DELIVERIES, values).mappings().all()
    return [DeliveryRecord(**row) for row in rows]
