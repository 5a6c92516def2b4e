"""Purge of all contents of a tenant, or of one of its users, by the operator: counted first, then in bounded steps.

For a user: the contents of the jobs with that ``user``. For a tenant also the rows with contents that are no job's,
such as files and batches: each feature names its own (``store.jobs.erasure``). Jobs and batches that have not ended
are counted, not purged. Keys, policies, endpoints, usage and audit log stay.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.digests import Digests
from headrace.store.jobs.erasure import PurgedRows, erase, erasure_parts, not_needed


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
_LEFT = "(input_purged_at IS NULL OR output_purged_at IS NULL)"


@cache
def _purges() -> dict[str, PurgedRows]:
    return {rows.table: rows for part in erasure_parts() for rows in part.purges}


def kinds() -> tuple[str, ...]:
    """Return the kinds of rows that are purged, in this order."""
    return ("jobs", *_purges())


@cache
def _count() -> TextClause:
    """Return the number of rows to purge of each kind, and of jobs that have not ended."""
    own = [
        f"""(SELECT count(*) FROM {rows.table}
        WHERE tenant_id = :tenant_id AND {_BEFORE} AND CAST(:user_id AS varchar) IS NULL AND {rows.condition}
    ) AS {rows.table}"""
        for rows in _purges().values()
    ]
    return text(f"""
SELECT
    (SELECT count(*) FROM jobs
        WHERE tenant_id = :tenant_id AND {_OF_USER} AND {_BEFORE} AND completed_at IS NOT NULL AND parent_id IS NULL
            AND {_LEFT} AND {not_needed(output=False)}) AS jobs,
    {"".join(f"{one}, " for one in own)}
    (SELECT count(*) FROM jobs
        WHERE tenant_id = :tenant_id AND {_OF_USER} AND {_BEFORE} AND parent_id IS NULL
            AND (completed_at IS NULL OR NOT ({not_needed(output=False)}))) AS live
""")


@cache
def _jobs() -> TextClause:
    """Return jobs to purge, in the order of their ids, so that no step reads the rows of earlier steps again."""
    return text(f"""
SELECT id FROM jobs
WHERE tenant_id = :tenant_id AND id > :after AND {_OF_USER} AND {_BEFORE} AND completed_at IS NOT NULL AND {_LEFT}
    AND parent_id IS NULL AND {not_needed(output=False)}
ORDER BY id LIMIT :limit FOR NO KEY UPDATE
""")


@cache
def _deletes(table: str) -> TextClause:
    """Delete rows of a table, with all that refers to them."""
    return text(f"""
DELETE FROM {table} WHERE id = ANY (ARRAY(
    SELECT id FROM {table} WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_purges()[table].condition}
    ORDER BY id LIMIT :limit FOR UPDATE))
""")


def count(db: Database, scope: Scope) -> dict[str, int]:
    """Return the number of rows to purge of each kind, and as ``live`` the number of jobs that have not ended."""
    with db.begin(tenant_id=scope.tenant_id) as connection:
        connection.execute(
            text("SET LOCAL statement_timeout = '10min'")
        )  # it only reads, so it blocks no other transaction
        return dict(connection.execute(_count(), asdict(scope)).mappings().one())


def purge_step(db: Database, kind: str, scope: Scope, *, after: str = "", limit: int) -> PurgeStep:
    """Purge at most ``limit`` rows of a kind, in one transaction."""
    values = asdict(scope) | {"after": after, "limit": limit}
    if kind != "jobs" and scope.user_id is not None:
        return PurgeStep(0, None)
    with db.begin(tenant_id=scope.tenant_id) as connection:
        if kind == "jobs":
            ids = list(connection.execute(_jobs(), values).scalars())
            erase(connection, ids)
            return PurgeStep(len(ids), ids[-1] if ids else None, tuple(ids))
        if (erase_rows := _purges()[kind].erase) is not None:
            num, more = erase_rows(connection, values)
        else:
            num = connection.execute(_deletes(kind), values).rowcount
            more = num == limit
    return PurgeStep(num, "" if more else None)


def record_purge(
    db: Database, scope: Scope, action: str, detail: Mapping[str, int], *, digests: Digests, actor: str
) -> None:
    """Record in the audit log that a purge started (``contents.purging``) or ended (``contents.purged``)."""
    with db.begin(tenant_id=scope.tenant_id) as connection:
        record(connection, scope.tenant_id, actor, action, scope.tenant_id, {**scope.audit_fields(digests), **detail})
