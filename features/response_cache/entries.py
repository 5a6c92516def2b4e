"""The response cache at acceptance: which new jobs compute an answer, and which get the answer of another job.

An entry names a *source*: a job that computes the answer for a digest of model version, policy and payload, or has
computed it. A *sharer* is a job that gets the answer of its source (``sharers``). Nothing else is stored: an entry
ends with the contents of its source. Requests that do not use the cache cost no statement here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from headrace.features.response_cache import sharers
from headrace.store.db.database import Database
from headrace.store.jobs.acceptance import Lookup, NewJob
from headrace.store.json_text import dump_json
from headrace.store.schema.job_states import UNSERVED_QUEUE, CacheResult
from headrace.store.seal import Seal


@dataclass(frozen=True, slots=True)
class CacheLookup(Lookup):
    """A request that may get the answer of another: the digest of what decides the answer.

    ``ttl_s``: an answer older than this, in seconds since the end of its job, is not used.
    """

    digest: str
    ttl_s: float

    @staticmethod
    def assigned(connection: Connection, jobs: Sequence[NewJob], *, but: Collection[str]) -> list[NewJob]:
        """Return the jobs with their part in the cache: source, sharer, or none. Those of ``but`` have none."""
        return assigned(connection, jobs, but=but)

    @staticmethod
    def accepted(connection: Connection, jobs: Sequence[NewJob], new: Collection[str], seal: Seal) -> None:
        """End the new jobs with an answer, and forget those that were not accepted. ``new``: the ids of new jobs."""
        if lost := [job.id for job in jobs if job.cache is CacheResult.MISS and job.id not in new]:
            leave(connection, lost)
        if hits := [job.id for job in jobs if job.cache is CacheResult.HIT and job.id in new]:
            sharers.answer(connection, hits, seal)


# Conditions on a job ``source``: it has an answer for others that is not too old; it will have one.
_IS_FRESH = """(source.state = 'succeeded' AND source.output_purged_at IS NULL AND NOT source.purge_when_ended
    AND source.completed_at > now() - make_interval(secs => :ttl_s))"""
_IS_UNDER_WAY = "(source.state IN ('queued', 'running') AND source.cancel_requested_at IS NULL)"

# No source is of a worse class than its sharers, which would wait behind it.
_ASKED = """asked AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        id text, tenant_id text, digest text, class_rank smallint, model_version int)
)"""

# Find the sources of new jobs. A queued source may have been moved to another version.
_FIND = text(f"""
WITH {_ASKED}
SELECT asked.id, entry.job_id AS source, source.state NOT IN ('queued', 'running') AS has_ended
FROM asked JOIN cache_entries AS entry USING (tenant_id, digest) JOIN jobs AS source ON source.id = entry.job_id
WHERE source.model_version = asked.model_version
    AND ({_IS_FRESH} OR ({_IS_UNDER_WAY} AND entry.class_rank <= asked.class_rank))
""")

# Make new jobs the sources of their digests. Entries are inserted in order: see ``store.jobs.acceptance``. Of two
# processes with one digest the second waits for the commit of the first. An entry stays if its source is as good: it
# may be a job that this statement does not see, because it was committed a moment ago.
_ENTER = text(f"""
WITH {_ASKED}
INSERT INTO cache_entries AS entry (tenant_id, digest, job_id, class_rank)
SELECT DISTINCT ON (tenant_id, digest) tenant_id, digest, id, class_rank
FROM asked ORDER BY tenant_id, digest, class_rank, id
ON CONFLICT (tenant_id, digest) DO UPDATE SET
    job_id = EXCLUDED.job_id, class_rank = EXCLUDED.class_rank, created_at = now()
WHERE EXISTS (
    SELECT FROM jobs AS source WHERE source.id = entry.job_id
        AND NOT ({_IS_FRESH} OR ({_IS_UNDER_WAY} AND entry.class_rank <= EXCLUDED.class_rank)))
RETURNING tenant_id, digest, job_id
""")

_LEAVE = text("DELETE FROM cache_entries WHERE job_id = ANY(CAST(:ids AS text[]))")

# Delete entries with an answer that is too old, and each tenant's oldest above the limit.
_PURGE = text("""
WITH placed AS (
    SELECT entry.tenant_id, entry.digest, source.completed_at,
        row_number() OVER (PARTITION BY entry.tenant_id ORDER BY entry.created_at DESC) AS place
    FROM cache_entries AS entry JOIN jobs AS source ON source.id = entry.job_id
), old AS (
    SELECT tenant_id, digest FROM placed
    WHERE completed_at < now() - make_interval(secs => :ttl_s) OR place > :most LIMIT :limit
)
DELETE FROM cache_entries AS entry USING old WHERE entry.tenant_id = old.tenant_id AND entry.digest = old.digest
""")


def assigned(connection: Connection, jobs: Sequence[NewJob], *, but: Collection[str]) -> list[NewJob]:
    """Return the jobs with their part in the cache: source, sharer, or none. Those with an id in ``but`` have none."""
    asking = {job.id: job for job in jobs if isinstance(job.lookup, CacheLookup) and job.id not in but}
    if not asking:
        return list(jobs)
    sources = _sources(connection, list(asking.values()))
    return [_placed(job, sources.get(job.id)) for job in jobs]


@dataclass(frozen=True, slots=True)
class _Source:
    job_id: str
    has_ended: bool = False


def _sources(connection: Connection, jobs: Sequence[NewJob]) -> dict[str, _Source]:
    """Return the source of each job: another job or itself. A job of a class that has no source is absent."""
    ttl_s = max(job.lookup.ttl_s for job in jobs if isinstance(job.lookup, CacheLookup))
    found = _find(connection, jobs, ttl_s)
    missing = [job for job in jobs if job.id not in found]
    if missing:
        rows = connection.execute(_ENTER, {"rows": _rows(missing), "ttl_s": ttl_s})
        entered = {(row.tenant_id, row.digest): _Source(row.job_id) for row in rows}
        found |= {job.id: entered[key] for job in missing if (key := _key(job)) in entered}
        # Another process has entered these meanwhile.
        if left := [job for job in missing if job.id not in found]:
            found |= _find(connection, left, ttl_s)
    return found


def _find(connection: Connection, jobs: Sequence[NewJob], ttl_s: float) -> dict[str, _Source]:
    rows = connection.execute(_FIND, {"rows": _rows(jobs), "ttl_s": ttl_s})
    return {row.id: _Source(row.source, row.has_ended) for row in rows}


def _placed(job: NewJob, source: _Source | None) -> NewJob:
    if not isinstance(job.lookup, CacheLookup):
        return job
    if source is None or source.job_id == job.id:
        return replace(job, cache=CacheResult.MISS)
    result = CacheResult.HIT if source.has_ended else CacheResult.SHARED
    return replace(
        job, cache=result, cache_source=source.job_id, queue=UNSERVED_QUEUE, announce=False, goes_ahead=False
    )


def _key(job: NewJob) -> tuple[str, str]:
    return job.tenant_id, job.lookup.digest if isinstance(job.lookup, CacheLookup) else ""


def _rows(jobs: Sequence[NewJob]) -> str:
    names = ("id", "tenant_id", "class_rank", "model_version")
    rows = [
        {"digest": job.lookup.digest, **{name: getattr(job, name) for name in names}}
        for job in jobs
        if isinstance(job.lookup, CacheLookup)
    ]
    return dump_json(rows)


def leave(connection: Connection, job_ids: Sequence[str]) -> None:
    """Delete the entries of these jobs: they were not accepted after all."""
    connection.execute(_LEAVE, {"ids": list(job_ids)})


def purge(db: Database, ttl_s: float, most: int, limit: int) -> int:
    """Delete entries older than ``ttl_s`` seconds, and each tenant's oldest above ``most``; return their number."""
    with db.autocommit() as connection:
        return connection.execute(_PURGE, {"ttl_s": float(ttl_s), "most": most, "limit": limit}).rowcount
