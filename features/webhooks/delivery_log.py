"""The delivery log of webhooks for their owner: deliveries with their attempts, and redelivery."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery. ``state``: pending, delivered or failed. ``url``: the current URL of its endpoint.

    ``registry_id``: the rollout, or the version as ``name@3``, of the event.
    """

    id: str
    endpoint_id: str | None
    url: str
    job_id: str | None
    batch_id: str | None
    about_endpoint_id: str | None
    registry_id: str | None
    type: str
    state: str
    attempts: int
    next_attempt_at: datetime
    last_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt. ``status``: HTTP status, None without an answer. ``error``: None if delivered."""

    attempt: int
    at: datetime
    duration_ms: int
    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Conditions on deliveries: job, endpoint, state, event type."""

    job_id: str | None = None
    endpoint_id: str | None = None
    state: str | None = None
    type: str | None = None


# A delivery, with the current URL of its endpoint.
_COLUMNS = """
    delivery.id, endpoint_id, COALESCE(endpoint.url, delivery.url) AS url, job_id, batch_id, about_endpoint_id,
    registry_id, type, state, attempts, next_attempt_at, last_status, last_error, delivery.created_at, delivered_at
FROM webhook_deliveries AS delivery LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = delivery.endpoint_id
WHERE delivery.tenant_id = :tenant_id"""

# A page of deliveries, newest first.
_LIST = text(f"""
SELECT {_COLUMNS}
    AND (CAST(:job_id AS text) IS NULL OR job_id IN (
        SELECT id FROM jobs WHERE id = :job_id OR parent_id = :job_id))
    AND (CAST(:endpoint_id AS text) IS NULL OR endpoint_id = :endpoint_id)
    AND (CAST(:state AS text) IS NULL OR state = :state)
    AND (CAST(:type AS text) IS NULL OR type = :type)
    AND (CAST(:after AS text) IS NULL OR (delivery.created_at, delivery.id) < (CAST(:after_at AS timestamptz), :after))
ORDER BY delivery.created_at DESC, delivery.id DESC LIMIT :limit
""")


# One delivery.
_GET = text(f"SELECT {_COLUMNS} AND delivery.id = :id")

# The attempts of a delivery, oldest first.
_ATTEMPTS = text("""
SELECT attempt, at, duration_ms, status, error FROM webhook_attempts
WHERE tenant_id = :tenant_id AND delivery_id = :id ORDER BY id
""")

RESTARTED = "state = 'pending', attempts_before = attempts, next_attempt_at = now(), delivered_at = NULL"
"""Assignments for a redelivery: the schedule starts again now, with the same id."""

# Restarts a delivery, unless its endpoint is disabled.
_REDELIVER = text(f"""
UPDATE webhook_deliveries AS delivery SET {RESTARTED}
WHERE tenant_id = :tenant_id AND id = :id AND NOT EXISTS (
    SELECT FROM webhook_endpoints WHERE id = delivery.endpoint_id AND disabled_at IS NOT NULL)
RETURNING id
""")


def list_deliveries(
    db: Database, tenant_id: str, only: DeliveryFilter | None = None, *, limit: int = 100, after: str | None = None
) -> list[DeliveryRecord]:
    """Return the tenant's deliveries, newest first, after the id ``after``.

    Raises InvalidRequest if ``after`` is not one of its deliveries.
    """
    values = asdict(only or DeliveryFilter()) | {"tenant_id": tenant_id, "limit": limit, "after": after}
    with db.autocommit(tenant_id=tenant_id) as connection:
        values["after_at"] = None if after is None else _after(connection, tenant_id, after)
        rows = connection.execute(_LIST, values).mappings().all()
    return [DeliveryRecord(**row) for row in rows]


def _after(connection: Connection, tenant_id: str, delivery_id: str) -> datetime:
    try:
        return _get(connection, tenant_id, delivery_id).created_at
    except NotFound as error:
        raise InvalidRequest(f"{error.message}: begin again without `after`", param="after") from None


def get_delivery(db: Database, tenant_id: str, delivery_id: str) -> tuple[DeliveryRecord, list[AttemptRecord]]:
    """Return a delivery and its last attempts, oldest first. Raises NotFound if the tenant has no such delivery."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        found = _get(connection, tenant_id, delivery_id)
        tries = connection.execute(_ATTEMPTS, {"tenant_id": tenant_id, "id": delivery_id}).mappings().all()
    return found, [AttemptRecord(**row) for row in tries]


def _get(connection: Connection, tenant_id: str, delivery_id: str) -> DeliveryRecord:
    row = connection.execute(_GET, {"tenant_id": tenant_id, "id": delivery_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no webhook delivery {delivery_id}")
    return DeliveryRecord(**row)


def redeliver(db: Database, tenant_id: str, delivery_id: str, *, actor: str) -> DeliveryRecord:
    """Send a delivery again with the same id, in any state. Returns it.

    Raises NotFound, and Conflict if its endpoint is disabled.
    """
    values = {"tenant_id": tenant_id, "id": delivery_id}
    with db.begin(tenant_id=tenant_id) as connection:
        before = _get(connection, tenant_id, delivery_id)
        if connection.execute(_REDELIVER, values).scalar_one_or_none() is None:
            raise disabled(before.endpoint_id or "")
        detail = {"type": before.type, "was": before.state}
        record(connection, tenant_id, actor, "webhook_delivery.redelivered", delivery_id, detail)
        return _get(connection, tenant_id, delivery_id)


def disabled(endpoint_id: str) -> Conflict:
    """Return the error for a disabled endpoint."""
    return Conflict(
        f"{endpoint_id} is disabled: enable it first, by POST /v1/webhook_endpoints/{endpoint_id}/enable",
        code="endpoint_disabled",
    )
