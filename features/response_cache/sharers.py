"""Sharers: jobs that get the answer of another job, their source (``features.response_cache.entries``).

A sharer is a queued job that no worker may claim. It ends with its source, in the same transaction, or in the
transaction that accepts it if the source has ended before. ``sweep`` cares for all others: the source ended while the
sharer was being accepted, or ended without an answer. Then the first sharer is computed and becomes the source of the
others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, text

from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen
from headrace.store.jobs.claim_queries import FINISH_SHARERS
from headrace.store.jobs.job_rows import Finish, encode, opened, row_of
from headrace.store.jobs.terminal import DEAD_LETTER_CODES
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal

log = structlog.get_logger(__name__)

SHARED_FAILURES = ("policy_blocked_output",)
"""Codes of failures that every computation of the request has: sharers get them too."""

# A job ``source`` has an answer for others.
HAS_ANSWER = f"""(source.output_purged_at IS NULL AND (source.state = 'succeeded' OR source.state = 'failed'
    AND source.error ->> 'code' IN ({", ".join(map(repr, SHARED_FAILURES))})))"""

MOST_AT_ONCE = 500
"""Sharers that a source ends together with itself. The sweep ends the others."""

IS_DUE = """(SELECT cache_source FROM jobs WHERE state = 'queued' AND cache_source IS NOT NULL
    ORDER BY cache_source LIMIT 1) IS NOT NULL"""
"""True if a job waits for the answer of another."""

_WAITED_MS = "CAST(extract(epoch FROM clock_timestamp() - sharer.created_at) * 1000 AS float8) AS waited_ms"

# A queued source may have been moved to another version: then its answer is not that of the sharer.
_SAME_VERSION = "source.model_version = sharer.model_version"

# Find the jobs that wait for these sources.
_WAITING = text(f"""
SELECT sharer.id, sharer.cache_source, {_WAITED_MS}
FROM jobs AS sharer JOIN jobs AS source ON source.id = sharer.cache_source
WHERE sharer.cache_source = ANY(CAST(:ids AS text[])) AND sharer.state = 'queued' AND {_SAME_VERSION}
ORDER BY sharer.cache_source, sharer.id LIMIT :most FOR NO KEY UPDATE OF sharer SKIP LOCKED
""")

# Read the answers for these jobs.
_ANSWERS = text(f"""
SELECT sharer.id AS sharer_id, {_WAITED_MS}, source.id, source.tenant_id, source.epoch, source.state, source.output,
    source.error, source.usage, stream.deltas, stream.lineage, stream.logprobs
FROM jobs AS sharer JOIN jobs AS source ON source.id = sharer.cache_source
    LEFT JOIN job_streams AS stream ON stream.job_id = source.id
WHERE sharer.id = ANY(CAST(:ids AS text[])) AND sharer.state = 'queued' AND {_SAME_VERSION} AND {HAS_ANSWER}
""")

# Find sources that have ended, or are deleted, while jobs wait for them. The cost depends on the number of sources.
_ENDED_SOURCES = text(f"""
WITH RECURSIVE sources AS (
    (SELECT cache_source AS id FROM jobs WHERE state = 'queued' AND cache_source IS NOT NULL
        ORDER BY cache_source LIMIT 1)
    UNION ALL
    SELECT (SELECT cache_source FROM jobs WHERE state = 'queued' AND cache_source > sources.id
        ORDER BY cache_source LIMIT 1)
    FROM sources WHERE sources.id IS NOT NULL
)
SELECT sources.id, COALESCE(source.epoch, 0) AS epoch, COALESCE({HAS_ANSWER}, false) AS has_answer
FROM sources LEFT JOIN jobs AS source ON source.id = sources.id
WHERE sources.id IS NOT NULL AND (source.id IS NULL OR source.completed_at IS NOT NULL)
LIMIT :limit
""")

# Lock the jobs that wait for a source, the first one to be computed first.
_HEIRS = text("""
SELECT id FROM jobs WHERE cache_source = :source AND state = 'queued'
ORDER BY class_rank, priority, deadline_at, id LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
""")

# Put a job that waited for a source into the queue of its version, and let the others wait for it. Its attempts come
# after those of the source, so that a reader's cursor stays valid.
_PROMOTE = text("""
WITH promoted AS (
    UPDATE jobs SET cache = 'miss', cache_source = NULL, queue = model || '@' || model_version, epoch = :epoch
    WHERE id = :id AND state = 'queued' AND cache_source = :source
    RETURNING id, class_rank
), moved AS (
    UPDATE jobs SET cache_source = :id FROM promoted
    WHERE jobs.id = ANY(CAST(:others AS text[])) AND jobs.state = 'queued' AND jobs.cache_source = :source
), entries AS (
    UPDATE cache_entries SET job_id = promoted.id, class_rank = promoted.class_rank FROM promoted
    WHERE cache_entries.job_id = :source
)
SELECT id FROM promoted
""")


@dataclass(frozen=True, slots=True)
class SharersSwept:
    """What a sweep did: jobs that got the answer of their source, and jobs that are computed in its place."""

    answered: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()


def answer_from(connection: Connection, sources: Sequence[Finish], seal: Seal) -> None:
    """End the jobs that wait for these sources, which this transaction has ended with an answer for others."""
    by_id = {finish.job_id: finish for finish in sources if _is_for_others(finish)}
    if not by_id:
        return
    waiting = connection.execute(_WAITING, {"ids": list(by_id), "most": MOST_AT_ONCE})
    _end(
        connection,
        [(_copy(by_id[row.cache_source], row.id, row.waited_ms), row.cache_source) for row in waiting],
        seal,
    )


def answer(connection: Connection, job_ids: Sequence[str], seal: Seal) -> list[str]:
    """End those of these jobs with a source that has an answer which can be decrypted; return their ids."""
    rows = connection.execute(_ANSWERS, {"ids": list(job_ids)}).mappings().all()
    found = {row["id"]: _opened(row, seal) for row in rows}
    copies = [
        (_copy(source, row["sharer_id"], row["waited_ms"]), row["id"])
        for row in rows
        if (source := found[row["id"]]) is not None
    ]
    return _end(connection, copies, seal)


def sweep(db: Database, limit: int) -> SharersSwept:
    """End or promote the jobs whose source has ended, at most ``limit`` of each of ``limit`` sources."""
    with db.autocommit() as connection:
        sources = connection.execute(_ENDED_SOURCES, {"limit": limit}).all()
    answered: list[str] = []
    promoted: list[str] = []
    for source in sources:
        with db.begin() as connection:
            most = limit if source.has_answer else None
            ids = list(connection.execute(_HEIRS, {"source": source.id, "most": most}).scalars())
            ended = answer(connection, ids, db.seal) if source.has_answer else []
            answered += ended
            if ids and not ended:
                values = {"source": source.id, "epoch": source.epoch, "id": ids[0], "others": ids[1:]}
                promoted += connection.execute(_PROMOTE, values).scalars()
    return SharersSwept(tuple(answered), tuple(promoted))


def _is_for_others(finish: Finish) -> bool:
    if finish.state is JobState.FAILED:
        return (finish.error or {}).get("code") in SHARED_FAILURES
    return finish.state is JobState.SUCCEEDED


def _opened(row: RowMapping, seal: Seal) -> Finish | None:
    """Return the end of a source; None if it cannot be decrypted."""
    try:
        return opened(row, seal)
    except CannotOpen as error:
        log.error("cached_answer_not_opened", job_id=row["id"], error=error.message)
        return None


def _copy(source: Finish, job_id: str, waited_ms: float) -> Finish:
    return replace(source, job_id=job_id, usage=_usage(source.usage, waited_ms))


def _usage(of_source: Mapping[str, Any] | None, waited_ms: float) -> dict[str, Any] | None:
    """Return the usage of a sharer: all of its input was cached, and it took no time of an engine."""
    if of_source is None:
        return None
    own = {"cached_tokens": of_source["input_tokens"], "queue_ms": waited_ms, "first_token_ms": None, "compute_ms": 0.0}
    # The cost is added anew where the job ends.
    return {name: value for name, value in {**of_source, **own}.items() if name != "cost"}


def _end(connection: Connection, copies: Sequence[tuple[Finish, str]], seal: Seal) -> list[str]:
    if not copies:
        return []
    rows = [{**row_of(finish, seal), "source": source_id} for finish, source_id in copies]
    values = {"rows": encode(rows), "dead": list(DEAD_LETTER_CODES)}
    return list(connection.execute(FINISH_SHARERS, values).scalars())
