"""Purge of all contents of a tenant, or of one of its users, by the operator: counted first, then in bounded steps.

For a user: the contents of the jobs with that ``user``. For a tenant also files, uploads, batches, prompt
templates, conversations and vector stores. Jobs and batches that have not ended are counted, not purged. Keys,
policies, endpoints, usage and audit log stay.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.digests import Digests
from headrace.store.retention.erasure import NOT_IN_LIVE_BATCH, erase
from headrace.store.retention.retention import erase_batches

KINDS: Final = ("jobs", "files", "uploads", "batches", "prompts", "conversations", "vector_stores")


@dataclass(frozen=True, slots=True)
class Scope:
    """The contents to purge: of a tenant, optionally only of one ``user``, or only those created before a time."""

    tenant_id: str
    user_id: str | None = None
    before: datetime | None = None

    def audit_fields(self, digests: Digests) -> dict[str, Any]:
        """Return the scope for the audit log, with a keyed digest of the user, or None without a key."""
        digest = None
        if self.user_id is not None and digests.is_keyed:
            digest = digests.of("name", self.user_id.encode())[0]
        return {
            "of_user": self.user_id is not None,
            "user_digest": digest,
            "before": None if self.before is None else self.before.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class PurgeStep:
    """The result of a step. ``after``: the start of the next step; None: nothing is left."""

    num: int
    after: str | None
    job_ids: tuple[str, ...] = ()


_BEFORE = "(CAST(:before AS timestamptz) IS NULL OR created_at < :before)"
_OF_USER = "(CAST(:user_id AS varchar) IS NULL OR user_id = :user_id)"
_OF_ALL = "CAST(:user_id AS varchar) IS NULL"
_LEFT = "(input_purged_at IS NULL OR output_purged_at IS NULL)"
_OVER = "status IN ('failed', 'completed', 'expired', 'cancelled')"

# Number of rows to purge of each kind, and of jobs that have not ended.
_COUNT = text(f"""
SELECT
    (SELECT count(*) FROM jobs
        WHERE tenant_id = :tenant_id AND {_OF_USER} AND {_BEFORE} AND completed_at IS NOT NULL AND parent_id IS NULL
            AND {_LEFT} AND {NOT_IN_LIVE_BATCH}) AS jobs,
    (SELECT count(*) FROM files WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS files,
    (SELECT count(*) FROM uploads WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS uploads,
    (SELECT count(*) FROM batches
        WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL} AND purged_at IS NULL AND {_OVER}) AS batches,
    (SELECT count(*) FROM prompts WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS prompts,
    (SELECT count(*) FROM conversations
        WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS conversations,
    (SELECT count(*) FROM vector_stores WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS vector_stores,
    (SELECT count(*) FROM jobs
        WHERE tenant_id = :tenant_id AND {_OF_USER} AND {_BEFORE} AND parent_id IS NULL
            AND (completed_at IS NULL OR NOT {NOT_IN_LIVE_BATCH})) AS live
""")


# Jobs to purge, in the order of their ids, so that no step reads the rows of earlier steps again.
_JOBS = text(f"""
SELECT id FROM jobs
WHERE tenant_id = :tenant_id AND id > :after AND {_OF_USER} AND {_BEFORE} AND completed_at IS NOT NULL AND {_LEFT}
    AND parent_id IS NULL AND {NOT_IN_LIVE_BATCH}
ORDER BY id LIMIT :limit FOR NO KEY UPDATE
""")

# The next batch to purge.
_BATCHES = text(f"""
SELECT id FROM batches
WHERE tenant_id = :tenant_id AND {_BEFORE} AND purged_at IS NULL AND {_OVER}
ORDER BY id LIMIT 1 FOR NO KEY UPDATE
""")

# Deletes rows of a table, with all that refers to them.
_DELETES = {
    kind: text(f"""
DELETE FROM {kind} WHERE id = ANY (ARRAY(
    SELECT id FROM {kind} WHERE tenant_id = :tenant_id AND {_BEFORE} ORDER BY id LIMIT :limit FOR UPDATE))
""")
    for kind in ("files", "uploads", "prompts", "conversations", "vector_stores")
}


def count(db: Database, scope: Scope) -> dict[str, int]:
    """Return the number of rows to purge of each kind, and as ``live`` the number of jobs that have not ended."""
    with db.begin(tenant_id=scope.tenant_id) as connection:
        connection.execute(
            text("SET LOCAL statement_timeout = '10min'")
        )  # it only reads, so it blocks no other transaction
        return dict(connection.execute(_COUNT, asdict(scope)).mappings().one())


def purge_step(db: Database, kind: str, scope: Scope, *, after: str = "", limit: int) -> PurgeStep:
    """Purge at most ``limit`` rows of a kind, in one transaction."""
    values = asdict(scope) | {"after": after, "limit": limit}
    if kind != "jobs" and scope.user_id is not None:
        return PurgeStep(0, None)
    with db.begin(tenant_id=scope.tenant_id) as connection:
        match kind:
            case "jobs":
                ids = list(connection.execute(_JOBS, values).scalars())
                erase(connection, ids)
                return PurgeStep(len(ids), ids[-1] if ids else None, tuple(ids))
            case "batches":
                ids = list(connection.execute(_BATCHES, values).scalars())
                num_rows = erase_batches(connection, ids, limit)
                return PurgeStep(int(bool(ids) and num_rows < limit), "" if ids else None)
            case _:
                num = connection.execute(_DELETES[kind], values).rowcount
    return PurgeStep(num, "" if num == limit else None)


def record_purge(
    db: Database, scope: Scope, action: str, detail: Mapping[str, int], *, digests: Digests, actor: str
) -> None:
    """Record in the audit log that a purge started (``contents.purging``) or ended (``contents.purged``)."""
    with db.begin(tenant_id=scope.tenant_id) as connection:
        record(connection, scope.tenant_id, actor, action, scope.tenant_id, {**scope.audit_fields(digests), **detail})
