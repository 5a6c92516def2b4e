"""Webhook endpoints of a tenant: create, read, update, rotate secrets, enable, delete.

The outbox disables an endpoint that keeps failing. A disabled endpoint gets no deliveries: its pending ones fail at
their next attempt, and can be recovered later.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, CursorResult, RowMapping, text
from sqlalchemy.exc import IntegrityError

from headrace.features.webhooks.secrets import DEFAULT_OVERLAP_S, overlapping
from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Forbidden, NotFound
from headrace.store.ids import new_id
from headrace.store.schema.event_types import EVERY_EVENT, REGISTRY_EVENTS, check_events
from headrace.store.tenants.signing_secrets import new_secret, secret_context

MAX_ENDPOINTS = 100
"""Maximum number of a tenant. The end of a job may write a row for each of them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL of a tenant that is subscribed to events of these types; ``*`` means all.

    ``secret`` is set only when it was just created. ``disabled_reason``: "gone" (it answered 410) or "failing".
    ``failing_since``: all attempts since then failed.
    """

    id: str
    tenant_id: str
    url: str
    old_secret_until: datetime | None
    events: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    secret: str | None = field(default=None, repr=False, compare=False)


_COLUMNS = """id, tenant_id, url, events, created_at, disabled_at, disabled_reason, failing_since,
    CASE WHEN old_secret_until > now() THEN old_secret_until END AS old_secret_until"""

# Adds an endpoint, unless the tenant has the URL or the maximum number.
_CREATE = text(f"""
INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events)
SELECT :id, CAST(:tenant_id AS varchar), :url, :secret, CAST(:events AS varchar[])
WHERE (SELECT count(*) FROM webhook_endpoints WHERE tenant_id = CAST(:tenant_id AS varchar)) < :most
ON CONFLICT (tenant_id, url) DO NOTHING
RETURNING {_COLUMNS}
""")

# Whether the tenant has an endpoint with the URL.
_HAS_URL = text("SELECT EXISTS (SELECT FROM webhook_endpoints WHERE tenant_id = :tenant_id AND url = :url)")


# The tenant's endpoints.
_LIST = text(f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE tenant_id = :tenant_id ORDER BY id")

# One endpoint.
_GET = f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id"

# Changes URL and events.
_UPDATE = text(f"""
UPDATE webhook_endpoints SET url = :url, events = CAST(:events AS varchar[])
WHERE tenant_id = :tenant_id AND id = :id RETURNING {_COLUMNS}
""")

# Stores a new secret, and keeps the old one for the overlap.
_ROTATE = text(f"""
UPDATE webhook_endpoints SET secret = :secret,
    old_secret = CASE WHEN :overlap_s > 0 THEN secret END,
    old_secret_until = CASE WHEN :overlap_s > 0 THEN now() + make_interval(secs => :overlap_s) END
WHERE tenant_id = :tenant_id AND id = :id RETURNING {_COLUMNS}
""")

# Enables an endpoint and clears its failures.
_ENABLE = text(f"""
UPDATE webhook_endpoints SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL, last_failed_at = NULL
WHERE tenant_id = :tenant_id AND id = :id RETURNING {_COLUMNS}
""")

# Deletes an endpoint; its deliveries are deleted by the foreign key.
_DELETE = text("DELETE FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id RETURNING id")


def create_endpoint(
    db: Database,
    tenant_id: str,
    *,
    url: str,
    events: Iterable[str] = (EVERY_EVENT,),
    actor: str,
    is_operator: bool = False,
) -> Endpoint:
    """Add an endpoint with a new secret. ``is_operator``: the actor may see the events of every rollout and version.

    Raises InvalidRequest for an unknown event, Forbidden for one that the actor may not see, Conflict if the URL exists
    or the maximum number is reached.
    """
    wanted = check_events(events)
    _check_actor(wanted, is_operator=is_operator)
    endpoint_id, secret = new_id("we"), new_secret()
    sealed = db.seal.seal_text(secret, secret_context(tenant_id, endpoint_id))
    values = {"id": endpoint_id, "tenant_id": tenant_id, "url": url, "secret": sealed, "events": wanted}
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_CREATE, values | {"most": MAX_ENDPOINTS}).mappings().one_or_none()
        if row is None:
            if connection.execute(_HAS_URL, {"tenant_id": tenant_id, "url": url}).scalar_one():
                raise _taken()
            raise Conflict(f"there are {MAX_ENDPOINTS} webhook endpoints, which is the most: remove one first")
        record(connection, tenant_id, actor, "webhook_endpoint.created", row["id"], {"events": wanted})
    return replace(_endpoint(row), secret=secret)


def list_endpoints(db: Database, tenant_id: str) -> list[Endpoint]:
    """Return the tenant's endpoints, oldest first."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [_endpoint(row) for row in connection.execute(_LIST, {"tenant_id": tenant_id}).mappings()]


def get_endpoint(db: Database, tenant_id: str, endpoint_id: str) -> Endpoint:
    """Return the endpoint. Raises NotFound if the tenant has no such endpoint."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        return _found(connection.execute(text(_GET), {"tenant_id": tenant_id, "id": endpoint_id}), endpoint_id)


def lock_endpoint(connection: Connection, tenant_id: str, endpoint_id: str) -> Endpoint:
    """Return the endpoint, locked for this transaction. Raises NotFound."""
    values = {"tenant_id": tenant_id, "id": endpoint_id}
    return _found(connection.execute(text(f"{_GET} FOR NO KEY UPDATE"), values), endpoint_id)


def update_endpoint(
    db: Database,
    tenant_id: str,
    endpoint_id: str,
    *,
    url: str | None = None,
    events: Iterable[str] | None = None,
    actor: str,
    is_operator: bool = False,
) -> Endpoint:
    """Change an endpoint's URL or its events. Pending deliveries go to the new URL. ``is_operator``: as at creation.

    Raises NotFound, InvalidRequest for an unknown event, Forbidden if the endpoint has or would have an event that the
    actor may not see, Conflict if another endpoint has the URL.
    """
    wanted = None if events is None else check_events(events)
    with db.begin(tenant_id=tenant_id) as connection:
        before = lock_endpoint(connection, tenant_id, endpoint_id)
        events = before.events if wanted is None else wanted
        _check_actor([*before.events, *events], is_operator=is_operator)
        values = {"tenant_id": tenant_id, "id": endpoint_id, "url": url or before.url, "events": list(events)}
        try:
            row = connection.execute(_UPDATE, values).mappings().one()
        except IntegrityError:
            # Without the cause: the driver's message quotes the URL, which may contain a token.
            raise _taken() from None
        after = _endpoint(row)
        _record_change(connection, actor, "webhook_endpoint.updated", before, after, {"events": list(after.events)})
    return after


def rotate_secret(
    db: Database, tenant_id: str, endpoint_id: str, *, overlap_s: int = DEFAULT_OVERLAP_S, actor: str
) -> Endpoint:
    """Create a new secret for an endpoint. The old one signs too for ``overlap_s`` seconds.

    Raises NotFound, and Conflict while an earlier overlap lasts, unless ``overlap_s`` is 0.
    """
    secret = new_secret()
    sealed = db.seal.seal_text(secret, secret_context(tenant_id, endpoint_id))
    values = {"tenant_id": tenant_id, "id": endpoint_id, "secret": sealed, "overlap_s": float(overlap_s)}
    with db.begin(tenant_id=tenant_id) as connection:
        before = lock_endpoint(connection, tenant_id, endpoint_id)
        if overlap_s and before.old_secret_until is not None:
            raise overlapping(before.old_secret_until)
        after = _endpoint(connection.execute(_ROTATE, values).mappings().one())
        record(connection, tenant_id, actor, "webhook_endpoint.secret_rotated", endpoint_id, {"overlap_s": overlap_s})
    return replace(after, secret=secret)


def enable_endpoint(db: Database, tenant_id: str, endpoint_id: str, *, actor: str) -> Endpoint:
    """Enable an endpoint: it gets events from now on. Does nothing if it is enabled. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        before = lock_endpoint(connection, tenant_id, endpoint_id)
        if before.disabled_at is None:
            return before
        values = {"tenant_id": tenant_id, "id": endpoint_id}
        after = _endpoint(connection.execute(_ENABLE, values).mappings().one())
        _record_change(connection, actor, "webhook_endpoint.enabled", before, after, {"was": before.disabled_reason})
    return after


def delete_endpoint(db: Database, tenant_id: str, endpoint_id: str, *, actor: str) -> None:
    """Delete an endpoint and its deliveries. Raises NotFound if the tenant has no such endpoint."""
    with db.begin(tenant_id=tenant_id) as connection:
        values = {"tenant_id": tenant_id, "id": endpoint_id}
        if connection.execute(_DELETE, values).scalar_one_or_none() is None:
            raise NotFound(f"no webhook endpoint {endpoint_id}")
        record(connection, tenant_id, actor, "webhook_endpoint.deleted", endpoint_id, {})


def _check_actor(events: Iterable[str], *, is_operator: bool) -> None:
    """Raise Forbidden for an event that is not the tenant's. A change of the URL would send it elsewhere."""
    if not is_operator and (foreign := sorted(REGISTRY_EVENTS.intersection(events))):
        raise Forbidden(
            f"{', '.join(foreign)} are events of all tenants' models: use a key that also has the scope registry:admin,"
            " and no list of models",
            param="events",
        )


def _taken() -> Conflict:
    return Conflict("this URL is a webhook endpoint already", param="url")


def _found(result: CursorResult[Any], endpoint_id: str) -> Endpoint:
    row = result.mappings().one_or_none()
    if row is None:
        raise NotFound(f"no webhook endpoint {endpoint_id}")
    return _endpoint(row)


def _endpoint(row: RowMapping) -> Endpoint:
    return Endpoint(**{**row, "events": tuple(row["events"])})


def _record_change(
    connection: Connection, actor: str, action: str, before: Endpoint, after: Endpoint, detail: dict[str, object]
) -> None:
    fields = (_audit_fields(before), _audit_fields(after))
    record(connection, before.tenant_id, actor, action, before.id, detail, before=fields[0], after=fields[1])


def _audit_fields(endpoint: Endpoint) -> dict[str, object]:
    """Return the fields that the audit log stores as hashes, because a URL may contain a token."""
    return {"url": endpoint.url, "events": endpoint.events, "disabled": endpoint.disabled_reason}
