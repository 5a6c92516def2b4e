"""Forgetting everything of a tenant, or of one of its users, at the operator's word: counted, then in bounded steps.

Of a user: the contents of the jobs that named it. Of a tenant also files, batches, and prompt templates. Jobs and
batches that have not ended are left alone, and counted. Keys, policies, endpoints, usage and audit stay.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from store.audit.audit import record
from store.db.database import Database
from store.encryption.keyed_digests import Digests
from store.retention.erasure import IS_NO_LIVE_LINE, empty
from store.retention.retention import empty_batches

KINDS: Final = ("jobs", "files", "batches", "prompts")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose contents: a tenant's, perhaps only one user's (a request's ``user``), or only what came before a time."""

    tenant_id: str
    user_id: str | None = None
    before: datetime | None = None

    def told(self, digests: Digests) -> dict[str, Any]:
        """Return it for the audit log, which is kept for ever: of the user only a keyed digest, without a key none."""
        digest = None
        if self.user_id is not None and digests.is_keyed:
            digest = digests.of("name", self.user_id.encode())[0]
        return {
            "of_user": self.user_id is not None,
            "user_digest": digest,
            "before": None if self.before is None else self.before.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Step:
    """What a step forgot. ``after`` is where the next one goes on; None: there is nothing more."""

    num: int
    after: str | None
    job_ids: tuple[str, ...] = ()


_BEFORE = "(CAST(:before AS timestamptz) IS NULL OR created_at < :before)"
_OF_USER = "(CAST(:user_id AS varchar) IS NULL OR user_id = :user_id)"
_OF_ALL = "CAST(:user_id AS varchar) IS NULL"
_LEFT = "(input_purged_at IS NULL OR output_purged_at IS NULL)"
_OVER = "status IN ('failed', 'completed', 'expired', 'cancelled')"

_COUNT = text(f"""
SELECT
    (SELECT count(*) FROM jobs
        WHERE tenant_id = :tenant_id AND {_OF_USER} AND {_BEFORE} AND completed_at IS NOT NULL AND {_LEFT}
            AND {IS_NO_LIVE_LINE}) AS jobs,
    (SELECT count(*) FROM files WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS files,
    (SELECT count(*) FROM batches
        WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL} AND purged_at IS NULL AND {_OVER}) AS batches,
    (SELECT count(*) FROM prompts WHERE tenant_id = :tenant_id AND {_BEFORE} AND {_OF_ALL}) AS prompts,
    (SELECT count(*) FROM jobs
        WHERE tenant_id = :tenant_id AND {_OF_USER} AND {_BEFORE}
            AND (completed_at IS NULL OR NOT {IS_NO_LIVE_LINE})) AS live
""")


def count(db: Database, scope: Scope) -> dict[str, int]:
    """Return how many of each kind there are to forget, and as ``live`` how many jobs must end before that."""
    with db.begin(tenant_id=scope.tenant_id) as connection:
        connection.execute(text("SET LOCAL statement_timeout = '10min'"))  # it reads, and holds up nobody
        return dict(connection.execute(_COUNT, asdict(scope)).mappings().one())


# By their ids, so that no step reads again what the steps before it have emptied.
_JOBS = text(f"""
SELECT id FROM jobs
WHERE tenant_id = :tenant_id AND id > :after AND {_OF_USER} AND {_BEFORE} AND completed_at IS NOT NULL AND {_LEFT}
    AND {IS_NO_LIVE_LINE}
ORDER BY id LIMIT :limit FOR NO KEY UPDATE
""")

_BATCHES = text(f"""
SELECT id FROM batches
WHERE tenant_id = :tenant_id AND {_BEFORE} AND purged_at IS NULL AND {_OVER}
ORDER BY id LIMIT 1 FOR NO KEY UPDATE
""")

_FILES = text(f"""
DELETE FROM files WHERE id IN (
    SELECT id FROM files WHERE tenant_id = :tenant_id AND {_BEFORE} ORDER BY id LIMIT :limit FOR UPDATE)
""")

_PROMPTS = text(f"""
DELETE FROM prompts WHERE id IN (
    SELECT id FROM prompts WHERE tenant_id = :tenant_id AND {_BEFORE} ORDER BY id LIMIT :limit FOR UPDATE)
""")


def step(db: Database, kind: str, scope: Scope, *, after: str = "", limit: int) -> Step:
    """Forget at most ``limit`` rows of a kind, in one transaction."""
    values = asdict(scope) | {"after": after, "limit": limit}
    if kind != "jobs" and scope.user_id is not None:
        return Step(0, None)
    with db.begin(tenant_id=scope.tenant_id) as connection:
        match kind:
            case "jobs":
                ids = list(connection.execute(_JOBS, values).scalars())
                empty(connection, ids)
                return Step(len(ids), ids[-1] if ids else None, tuple(ids))
            case "batches":
                ids = list(connection.execute(_BATCHES, values).scalars())
                num_rows = empty_batches(connection, ids, limit)
                return Step(int(bool(ids) and num_rows < limit), "" if ids else None)
            case "files":
                num = connection.execute(_FILES, values).rowcount
            case _:
                num = connection.execute(_PROMPTS, values).rowcount
    return Step(num, "" if num == limit else None)


def note(db: Database, scope: Scope, action: str, detail: Mapping[str, int], *, digests: Digests, actor: str) -> None:
    """Write into the audit log that a purge began (``contents.purging``) or was done (``contents.purged``)."""
    with db.begin(tenant_id=scope.tenant_id) as connection:
        record(connection, scope.tenant_id, actor, action, scope.tenant_id, {**scope.told(digests), **detail})
