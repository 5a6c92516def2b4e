"""Files that jobs made, found by the job, and links to them, which open without a key until they expire.

A link is signed with the tenant's secret for webhooks: whoever may change that can end all links by a new secret.
"""

import hashlib
import hmac
from datetime import UTC, datetime

from sqlalchemy import text

from headrace.features.files import files
from headrace.features.files.files import File
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.tenants.signing_secrets import secret_context

MOST_FILES = 100
"""Files that one job may make."""

_FIND = text(f"""
SELECT {files.COLUMNS}, media_type FROM files
WHERE result_of = :job_id AND position = :position AND {files.IS_CURRENT}
""")

_SECRETS = text("""
SELECT COALESCE(rotated.secret, tenants.webhook_secret) AS secret,
    CASE WHEN rotated.old_secret_until > now() THEN rotated.old_secret END AS old_secret
FROM tenants LEFT JOIN webhook_secrets AS rotated ON rotated.tenant_id = tenants.id
WHERE tenants.id = :tenant_id AND tenants.disabled_at IS NULL
""")


def find(db: Database, tenant_id: str, job_id: str, position: int) -> tuple[File, str]:
    """Return the file that a job made as its number ``position`` from 0, and its media type. Raises NotFound."""
    values = {"tenant_id": tenant_id, "job_id": job_id, "position": position}
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_FIND, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"job {job_id} has no file {position}")
    found = dict(row)
    media_type = found.pop("media_type") or "application/octet-stream"
    return files.file_of(found), media_type


def _secrets(db: Database, tenant_id: str) -> list[str]:
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_SECRETS, {"tenant_id": tenant_id}).one_or_none()
    stored = () if row is None else (row.secret, row.old_secret)
    return [db.seal.open_text(one, secret_context(tenant_id)) for one in stored if one]


def signed_link(secret: str, tenant_id: str, job_id: str, position: int, expires: int) -> str:
    """Return the path of a link that is good until ``expires``, in Unix seconds."""
    signature = _signature(secret, tenant_id, job_id, position, expires)
    return f"/results/{tenant_id}/{job_id}/{position}?expires={expires}&signature={signature}"


def new_link(db: Database, tenant_id: str, job_id: str, position: int, expires: int) -> str:
    """Return a link with the tenant's newest secret. Blocks. Raises CannotOpen."""
    return signed_link(_secrets(db, tenant_id)[0], tenant_id, job_id, position, expires)


def check_link(db: Database, tenant_id: str, job_id: str, position: int, expires: int, signature: str) -> None:
    """Raise NotFound unless the link is signed and has not expired. Blocks. Raises CannotOpen."""
    if datetime.now(UTC).timestamp() < expires:
        for secret in _secrets(db, tenant_id):
            if hmac.compare_digest(_signature(secret, tenant_id, job_id, position, expires), signature):
                return
    raise NotFound("this link is not good: it has expired, was changed, or its secret was replaced")


def _signature(secret: str, tenant_id: str, job_id: str, position: int, expires: int) -> str:
    said = f"headrace result\0{tenant_id}\0{job_id}\0{position}\0{expires}"
    return hmac.new(secret.encode(), said.encode(), hashlib.sha256).hexdigest()
