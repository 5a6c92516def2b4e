"""The secrets that sign webhooks: how they are made, and the tenant's, which signs calls to jobs' own URLs.

A rotated secret signs on beside the new one for as long as its owner asked, so that receivers can follow one by one.
Where it was stored first it is sealed for, so a rotation moves what is sealed as it is.
"""

import base64
import secrets
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, RowMapping, text

from store.audit.audit import record
from store.db.database import Database
from store.encryption.vault import EncryptionContext
from store.errors import Conflict, NotFound

DEFAULT_OVERLAP_S = 86_400


def new_secret() -> str:
    """Return a signing secret as Standard Webhooks 1.0.0 writes them; 48 bytes need no padding in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(48)).decode()


def secret_context(tenant_id: str, endpoint_id: str | None = None) -> EncryptionContext:
    """Return what an endpoint's secrets, or the tenant's, are sealed for."""
    if endpoint_id is None:
        return EncryptionContext(tenant_id, "webhook_secrets", "secret", tenant_id)
    return EncryptionContext(tenant_id, "webhook_endpoints", "secret", endpoint_id)


@dataclass(frozen=True, slots=True)
class TenantSecret:
    """What signs the webhooks of URLs given with a job, and until when the one before it does so too."""

    secret: str = field(repr=False)
    old_secret_until: datetime | None


_GET = text("""
SELECT COALESCE(rotated.secret, tenants.webhook_secret) AS secret,
    CASE WHEN rotated.old_secret_until > now() THEN rotated.old_secret_until END AS old_secret_until
FROM tenants LEFT JOIN webhook_secrets AS rotated ON rotated.tenant_id = tenants.id WHERE tenants.id = :tenant_id
""")


def get_webhook_secret(db: Database, tenant_id: str) -> TenantSecret:
    """Return the tenant's secret; raise NotFound if there is no such tenant, CannotOpen for a key that is missing."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = _row(connection, tenant_id)
    return TenantSecret(db.vault.open_text(row["secret"], secret_context(tenant_id)), row["old_secret_until"])


# Without an overlap whatever was before ends at once, also while an earlier overlap lasts.
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


def rotate_webhook_secret(db: Database, tenant_id: str, *, overlap_s: int, actor: str) -> TenantSecret:
    """Make a new secret and return it; the old one signs on for ``overlap_s``.

    Raises NotFound, and Conflict while an earlier overlap lasts, unless ``overlap_s`` is 0.
    """
    secret = new_secret()
    sealed = db.vault.seal_text(secret, secret_context(tenant_id))
    values = {"tenant_id": tenant_id, "secret": sealed, "overlap_s": float(overlap_s)}
    with db.begin(tenant_id=tenant_id) as connection:
        is_rotated = connection.execute(_ROTATE, values).scalar_one_or_none() is not None
        old_secret_until = _row(connection, tenant_id)["old_secret_until"]
        if not is_rotated:
            raise overlapping(old_secret_until)
        record(connection, tenant_id, actor, "webhook_secret.rotated", tenant_id, {"overlap_s": overlap_s})
    return TenantSecret(secret, old_secret_until)


def overlapping(until: datetime | None) -> Conflict:
    """Return the refusal of a rotation that would end a secret before the time that was promised for it."""
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
