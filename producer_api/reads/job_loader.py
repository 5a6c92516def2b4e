"""Loads jobs for coroutines: concurrent reads of all tenants share one query, as ``store.db.group_commit`` does it.

Polls, long polls and streams all come here, so a thousand waiting clients cost a few queries a second.
"""

import math
import re
from collections.abc import Sequence
from operator import itemgetter

from producer_api.reads.placeholder_restore import restored
from store.db.database import Database
from store.db.group_commit import GroupCommit
from store.errors import HeadraceError, NotFound
from store.jobs import jobs
from store.jobs.jobs import Job, TenantAndId

MOST = 500
"""Callers that share one query. If more wait, tenants take turns, so that a tenant with many reads delays no other."""

PACE_S = 0.02
"""Queries start at least this far apart: the longest time that a caller waits to share a query."""

_ID = re.compile(r"[!-~]{1,128}")


class JobLoader:
    """Reads jobs as their owner sees them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reads: GroupCommit[TenantAndId, Job] = GroupCommit(
            self._read, max_size=MOST, pace_s=PACE_S, enough=math.inf, fair_key=itemgetter(0)
        )

    async def get(self, tenant_id: str, job_id: str) -> Job:
        """Return the job as it is now; raise NotFound if the tenant has no such job, Gone if it had one."""
        if _ID.fullmatch(job_id) is None:
            # Postgres refuses some texts, and the query of all callers in the batch would fail.
            raise NotFound(f"no job {job_id[:64]}")
        return await self._reads.join_async((tenant_id, job_id))

    def _read(self, pairs: Sequence[TenantAndId]) -> list[Job | Exception]:
        found = {pair: _restored(job) for pair, job in jobs.get_each(self._db, list(dict.fromkeys(pairs))).items()}
        return [found[pair] for pair in pairs]


def _restored(found: Job | HeadraceError) -> Job | Exception:
    if isinstance(found, HeadraceError):
        return found
    try:
        return restored(found)
    except Exception as error:  # noqa: BLE001 - it belongs to this job alone, not to the others in its batch
        return error
