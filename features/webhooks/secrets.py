"""The tenant's secret, which signs calls to the URLs of jobs.

After a rotation the old secret signs beside the new one for a chosen time, so that receivers can change one by one.
A rotation copies the old secret in its sealed form, so its context is that of its first column.
"""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, RowMapping, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, NotFound
from headrace.store.tenants.signing_secrets import new_secret, secret_context

DEFAULT_OVERLAP_S = 86_400


# The tenant's current secret, and the end of the overlap.
_GET = text("""
SELECT COALESCE(rotated.secret, tenants.webhook_secret) AS secret,
    CASE WHEN rotated.old_secret_until > now() THEN rotated.old_secret_until END AS old_secret_until
FROM tenants LEFT JOIN webhook_secrets AS rotated ON rotated.tenant_id = tenants.id WHERE tenants.id = :tenant_id
""")

# Stores a new secret. Without an overlap all older secrets end at once, even during an earlier overlap.
_ROTATE = text("""
INSERT INTO webhook_secrets AS rotated (tenant_id, secret, old_secret, old_secret_until)
SELECT id, :secret, CASE WHEN :overlap_s > 0 THEN webhook_secret END,
    CASE WHEN :overlap_s > 0 THEN now() + make_interval(secs => :overlap_s) END
FROM tenants WHERE id = :tenant_id
ON CONFLICT (tenant_id) DO UPDATE SET
    secret = EXCLUDED.secret, old_secret_until = EXCLUDED.old_secret_until,
    old_secret = CASE WHEN :overlap_s > 0 THEN rotated.secret END
WHERE :overlap_s = 0 OR rotated.old_secret_until IS NULL OR rotated.old_secret_until <= now()
RETURNING tenant_id
""")


@dataclass(frozen=True, slots=True)
class TenantSecret:
    """The secret for webhook URLs that came with a job, and the time until which the old secret signs too."""

    secret: str = field(repr=False)
    old_secret_until: datetime | None


def get_webhook_secret(db: Database, tenant_id: str) -> TenantSecret:
    """Return the tenant's secret. Raises NotFound, and CannotOpen if its encryption key is missing."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = _row(connection, tenant_id)
    return TenantSecret(db.seal.open_text(row["secret"], secret_context(tenant_id)), row["old_secret_until"])


def rotate_webhook_secret(db: Database, tenant_id: str, *, overlap_s: int, actor: str) -> TenantSecret:
    """Create a new secret and return it. The old one signs too for ``overlap_s`` seconds.

    Raises NotFound, and Conflict while an earlier overlap lasts, unless ``overlap_s`` is 0.
    """
    secret = new_secret()
    sealed = db.seal.seal_text(secret, secret_context(tenant_id))
    values = {"tenant_id": tenant_id, "secret": sealed, "overlap_s": float(overlap_s)}
    with db.begin(tenant_id=tenant_id) as connection:
        is_rotated = connection.execute(_ROTATE, values).scalar_one_or_none() is not None
        old_secret_until = _row(connection, tenant_id)["old_secret_until"]
        if not is_rotated:
            raise overlapping(old_secret_until)
        record(connection, tenant_id, actor, "webhook_secret.rotated", tenant_id, {"overlap_s": overlap_s})
    return TenantSecret(secret, old_secret_until)


def overlapping(until: datetime | None) -> Conflict:
    """Return the error for a rotation during an earlier overlap."""
    end = "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S} UTC"
    return Conflict(
        f"the secret before this one still signs{end}: rotate after that, or with `overlap_s` 0 to end both now",
        code="rotation_in_progress",
    )


def _row(connection: Connection, tenant_id: str) -> RowMapping:
    row = connection.execute(_GET, {"tenant_id": tenant_id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no tenant {tenant_id}")
    return row
