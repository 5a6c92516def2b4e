"""Accepts jobs: one transaction for a batch of them, with their idempotency keys and the decision to announce.

Callers use it through ``store.jobs.jobs``. When concurrent processes bring the same idempotency key, one inserts the
key's row; the others wait for that commit and replay its job.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, TypeGuard

from sqlalchemy import Connection, Dialect, text
from sqlalchemy.dialects import postgresql

from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, IdempotencyKeyReused, Unavailable
from headrace.store.failpoints import failpoint
from headrace.store.jobs.face_row import FaceRow
from headrace.store.json_text import dump_json
from headrace.store.payloads.job_payload import CLASS_RANKS, ServiceClass
from headrace.store.schema import tables
from headrace.store.schema.job_states import CacheResult
from headrace.store.seal import Seal, seal_job
from headrace.store.tenants import quotas
from headrace.store.tenants.quotas import QuotaPart, QuotaRequest
from headrace.store.tenants.tenant_limits import RequestLimits

# A key can be purged after another job has won it and before that job's id is read. Then the job is inserted again.
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's key on one route, and the fingerprint of the request's body.

    ``also``: the fingerprints of the same body under older digest keys.
    """

    route: str
    key: str
    fingerprint: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fallback:
    """What a job of a candidate becomes if it is moved to the stable version: ``features.rollouts.moves``."""

    payload: dict[str, Any]
    input_tokens: int
    cost_tokens: int


class Lookup(ABC):
    """What a feature asks of the acceptance of a job: perhaps the job gets its answer from elsewhere.

    Both methods get all jobs of a transaction that have such a lookup. They must not wait for a row that may be held.
    """

    @staticmethod
    @abstractmethod
    def assigned(connection: Connection, jobs: "Sequence[NewJob]", *, but: Collection[str]) -> "list[NewJob]":
        """Return the jobs as they are stored, in their order. Jobs with an id in ``but`` will not be stored."""

    @staticmethod
    @abstractmethod
    def accepted(connection: Connection, jobs: "Sequence[NewJob]", new: Collection[str], seal: Seal) -> None:
        """Learn which of the jobs are stored: ``new``."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to accept. ``deadline_s`` counts from acceptance, by the database's clock, or from ``start_after``.

    ``start_after``: it is in ``UNSERVED_QUEUE`` until then, and its first steps too.

    ``announce`` asks for ``announced_at`` to be set at once. Postgres does so unless jobs of the queue wait already, or
    in any case if the job ``goes_ahead``.
    ``response``: the row that a face stores beside the job. ``is_stored``: True for a chat completion
    that is stored, False for one that is erased after its end. ``traceparent``: of its spans, if it is traced.
    ``api_key_id``, ``project_id`` and ``user_id``: usage is counted for them, and for the tenant. The job is refused if
    it does not fit ``limits``; None is no limit. ``lookup``: it may get the answer of another job; acceptance then sets
    ``cache`` and ``cache_source``, and the queue of a sharer. ``model_digest``: of the version. ``rollout_id``: the
    active rollout of its alias. ``fallback``: for a job of the candidate, what it is on the stable version, if other.

    ``steps``: of a flow, the jobs that are stored with it; ``answer_id``: the one whose output is the flow's;
    ``pipeline_version``: its version of a pipeline. A step has ``parent_id``, its ``step`` name, and ``needs``.

    Every attribute with the name of a column of ``jobs`` is stored in that column.
    """

    id: str
    tenant_id: str
    task: str
    model: str
    model_version: int
    queue: str
    service_class: ServiceClass
    priority: int
    payload: dict[str, Any]
    input_tokens: int
    cost_tokens: int
    metadata: dict[str, str]
    webhook: dict[str, Any] | None
    max_attempts: int
    deadline_s: float
    idempotency: Idempotency | None
    announce: bool
    fingerprint: str | None = None
    response: FaceRow | None = None
    api_key_id: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    limits: RequestLimits | None = None
    goes_ahead: bool = False
    is_stored: bool | None = None
    model_digest: str | None = None
    rollout_id: str | None = None
    fallback: "Fallback | None" = None
    lookup: Lookup | None = None
    cache: CacheResult | None = None
    cache_source: str | None = None
    traceparent: str | None = None
    steps: "tuple[NewJob, ...]" = ()
    parent_id: str | None = None
    step: str | None = None
    needs: tuple[str, ...] | None = None
    answer_id: str | None = None
    pipeline_version: int | None = None
    start_after: datetime | None = None

    @property
    def is_stored_chat(self) -> bool:
        """True if it is listed among the stored chat completions."""
        return self.is_stored is True

    @property
    def purge_when_ended(self) -> bool:
        """True if its contents are erased as soon as it has ended."""
        return self.is_stored is False or (self.response is not None and not self.response.is_kept)

    @property
    def queued_tokens(self) -> int:
        """What the fair order counts of it; of a flow that of its steps together."""
        return sum(step.cost_tokens for step in self.steps) if self.steps else self.cost_tokens

    @property
    def price_queue(self) -> str:
        """The queue of its version, which has its price."""
        return f"{self.model}@{self.model_version}"

    @property
    def class_rank(self) -> int:
        """The service class as a number; the lowest is served first."""
        return CLASS_RANKS[self.service_class]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The stored job: this one, or for a replay the job that was accepted with the key before.

    ``announced``: the caller shall publish its hint now, and the hints of ``announced_steps``. ``times``: the times in
    the new row; None for a replay.
    ``cache``: what the response cache did for it; a job with a hit has ended, mostly.
    """

    job_id: str
    replayed: bool
    announced: bool
    times: "AcceptedTimes | None" = field(default=None, compare=False)
    cache: CacheResult | None = None
    announced_steps: tuple[str, ...] = ()

    @property
    def hinted(self) -> frozenset[str]:
        """The ids of the jobs and steps whose hints are to be published."""
        return frozenset((self.job_id, *self.announced_steps) if self.announced else self.announced_steps)


@dataclass(frozen=True, slots=True)
class AcceptedTimes:
    """The columns of a new job that the database sets. With them the caller need not read the row."""

    created_at: datetime
    deadline_at: datetime
    announced_at: datetime | None


IdempotencyRow = tuple[str, str, str]  # tenant, route, key

_POSTGRES: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy gives it no types

# The columns that the statement below copies from a NewJob into its row. ``str``: SQLAlchemy's names are a subclass of
# it, which the JSON encoder does not take.
_COPIED = {
    str(column.name): column.type.compile(_POSTGRES) for column in tables.jobs.columns if hasattr(NewJob, column.name)
}
_NAMES = ", ".join(_COPIED)
_TYPED = ", ".join(f"{name} {sql_type}" for name, sql_type in _COPIED.items())

# Store jobs with their keys and events. Returns the jobs that are new.
# Keys are inserted in order: two batches with the same keys wait for each other in the same direction and cannot
# deadlock. Of two jobs with one key in the same batch the older wins it. A job is announced at once only if no job of
# its class or a better one waits.
_ACCEPT = text(f"""
WITH incoming AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        {_TYPED}, deadline_s float8, announce bool, goes_ahead bool, route text, key text, key_fingerprint text,
        fallback jsonb)
), new_keys AS (
    INSERT INTO idempotency_keys (tenant_id, route, key, fingerprint, job_id)
    SELECT tenant_id, route, key, key_fingerprint, id FROM incoming WHERE key IS NOT NULL
    ORDER BY tenant_id, route, key, id
    ON CONFLICT (tenant_id, route, key) DO NOTHING
    RETURNING job_id
), fresh AS (
    SELECT incoming.*, (goes_ahead OR bool_and(announce) OVER (PARTITION BY queue, class_rank) AND NOT EXISTS (
        SELECT FROM queue_lines AS line
        WHERE line.queue = incoming.queue AND line.state = 'queued' AND line.announced_at IS NULL
            AND line.class_rank <= incoming.class_rank AND NOT line.is_suspect
    )) AND NOT EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = incoming.queue) AS announced
    FROM incoming WHERE key IS NULL OR id IN (SELECT job_id FROM new_keys)
), created AS (
    INSERT INTO jobs ({_NAMES}, deadline_at, announced_at)
    SELECT {_NAMES}, GREATEST(now(), start_after) + make_interval(secs => deadline_s),
        CASE WHEN announced THEN now() END
    FROM fresh
    RETURNING id, created_at, deadline_at, announced_at
), events AS (
    INSERT INTO job_events (job_id, kind, epoch) SELECT id, 'queued', 0 FROM created
), fallbacks AS (
    INSERT INTO job_fallbacks (job_id, tenant_id, payload, input_tokens, cost_tokens)
    SELECT
        id, tenant_id, fallback -> 'payload', CAST(fallback ->> 'input_tokens' AS int),
        CAST(fallback ->> 'cost_tokens' AS int)
    FROM fresh WHERE fallback IS NOT NULL
)
SELECT id, created_at, deadline_at, announced_at FROM created
""")

# Find the stored jobs of idempotency keys.
_HOLDERS = text("""
SELECT held.tenant_id, held.route, held.key, held.fingerprint, held.job_id
FROM idempotency_keys AS held
JOIN unnest(CAST(:tenants AS text[]), CAST(:routes AS text[]), CAST(:keys AS text[])) AS asked(tenant_id, route, key)
    USING (tenant_id, route, key)
""")

# Find the stored job of an idempotency key whose request had the same bytes.
_REPEATED = text("""
SELECT jobs.id FROM idempotency_keys AS held JOIN jobs ON jobs.tenant_id = held.tenant_id AND jobs.id = held.job_id
WHERE held.tenant_id = :tenant_id AND held.route = :route AND held.key = :key
    AND jobs.fingerprint = ANY(CAST(:fingerprints AS text[]))
""")

# Count one more caller of each replayed job, up to the largest value of the column. Rows are locked in the order of
# their ids, as in every batch. A job that was replayed twice in one batch is counted once.
_ADD_CALLERS = text("""
WITH joined AS (SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id FOR NO KEY UPDATE)
UPDATE jobs SET callers = LEAST(callers + 1, 32767) FROM joined WHERE jobs.id = joined.id
""")


def accept(db: Database, jobs: Sequence[NewJob]) -> list[Accepted | HeadraceError]:
    """Store the jobs in one transaction and return each one's outcome, in order. Raises as ``FaceRow.write``.

    A job with a known key replays the stored job, or gets IdempotencyKeyReused if its fingerprint differs. A job over
    its limits gets the error of ``store.tenants.quotas``.
    """
    with db.begin(tenant_ids={job.tenant_id for job in jobs}) as connection:
        outcomes = accept_within(connection, jobs, db.seal)
        failpoint("accept.before_commit")
    failpoint("accept.committed")
    return outcomes


def accept_within(connection: Connection, jobs: Sequence[NewJob], seal: Seal) -> list[Accepted | HeadraceError]:
    """Run ``accept`` in the caller's transaction."""
    outcomes: dict[str, Accepted | HeadraceError] = {**_refusals(connection, jobs)}
    kinds = {type(job.lookup) for job in jobs if job.lookup is not None}
    for kind in kinds:
        jobs = kind.assigned(connection, jobs, but={*outcomes, *_replays(connection, jobs)})
    for _ in range(_ROUNDS):
        missing = [job for job in jobs if job.id not in outcomes]
        if missing:
            outcomes.update(_accept_once(connection, missing, seal))
    for kind in kinds:
        new = {job_id for job_id, found in outcomes.items() if isinstance(found, Accepted) and not found.replayed}
        kind.accepted(connection, jobs, new, seal)
    gone = Unavailable("the idempotency key is being forgotten just now: try again")
    return [outcomes.get(job.id, gone) for job in jobs]


def _replays(connection: Connection, jobs: Sequence[NewJob]) -> set[str]:
    """Return the jobs with an idempotency key that is known."""
    keyed = [job for job in jobs if job.idempotency is not None]
    known = _holders(connection, keyed) if keyed else {}
    return {job.id for job in keyed if _key(job) in known}


def _refusals(connection: Connection, jobs: Sequence[NewJob]) -> dict[str, HeadraceError]:
    """Return the errors of the jobs over their limits. A job that was accepted before is not counted again."""
    keyed = [job for job in jobs if job.limits is not None and job.idempotency is not None]
    known = _holders(connection, keyed) if keyed else {}
    wants = [
        QuotaRequest(
            job.id,
            job.tenant_id,
            job.api_key_id or "",
            tuple(QuotaPart(part.price_queue, part.input_tokens, part.cost_tokens) for part in (job.steps or (job,))),
            job.limits,
        )
        for job in jobs
        if job.limits is not None and _key(job) not in known
    ]
    return quotas.refusals(connection, wants)


def is_known(db: Database, tenant_id: str, idempotency: Idempotency) -> bool:
    """Return whether a job was accepted with this key."""
    values = {"tenants": [tenant_id], "routes": [idempotency.route], "keys": [idempotency.key]}
    with db.autocommit(tenant_id=tenant_id) as connection:
        return connection.execute(_HOLDERS, values).first() is not None


def job_of_key(db: Database, tenant_id: str, idempotency: Idempotency) -> str | None:
    """Return the job that was accepted with this key and this body, which has one more caller now; else None."""
    values = {"tenants": [tenant_id], "routes": [idempotency.route], "keys": [idempotency.key]}
    with db.begin(tenant_id=tenant_id) as connection:
        row = connection.execute(_HOLDERS, values).one_or_none()
        if row is None or row.fingerprint not in (idempotency.fingerprint, *idempotency.also):
            return None
        connection.execute(_ADD_CALLERS, {"ids": [row.job_id]})
    found: str = row.job_id
    return found


def job_of_repeated_body(db: Database, tenant_id: str, route: str, key: str, fingerprints: Sequence[str]) -> str | None:
    """Return the job that was accepted with this key and one of these ``NewJob.fingerprint``; else None.

    For a request that can no longer be prepared. The job has one more caller now.
    """
    values = {"tenant_id": tenant_id, "route": route, "key": key, "fingerprints": [*fingerprints]}
    with db.begin(tenant_id=tenant_id) as connection:
        found: str | None = connection.execute(_REPEATED, values).scalar_one_or_none()
        if found is not None:
            connection.execute(_ADD_CALLERS, {"ids": [found]})
    return found


def _accept_once(connection: Connection, jobs: Sequence[NewJob], seal: Seal) -> dict[str, Accepted | HeadraceError]:
    outcomes: dict[str, Accepted | HeadraceError] = {}
    rows = [_row(job, seal) for job in jobs]
    by_id = {job.id: job for job in jobs}
    for row in connection.execute(_ACCEPT, {"rows": dump_json(rows)}):
        times = AcceptedTimes(row.created_at, row.deadline_at, row.announced_at)
        announced = row.announced_at is not None
        outcomes[row.id] = Accepted(row.id, replayed=False, announced=announced, times=times, cache=by_id[row.id].cache)
    if flows := [job for job in jobs if job.steps and job.id in outcomes]:
        outcomes |= _accept_steps(connection, flows, outcomes, seal)
    _write_rows(connection, [job for job in jobs if job.id in outcomes], seal)
    replays = [job for job in jobs if job.id not in outcomes]
    holders = _holders(connection, replays) if replays else {}
    for job in replays:
        if (holder := holders.get(_key(job))) is not None:
            outcomes[job.id] = _replay(job, *holder)
    if replays:
        connection.execute(_ADD_CALLERS, {"ids": [found.job_id for found in outcomes.values() if _is_replay(found)]})
    return outcomes


def _accept_steps(
    connection: Connection, flows: Sequence[NewJob], outcomes: Mapping[str, Accepted | HeadraceError], seal: Seal
) -> dict[str, Accepted | HeadraceError]:
    """Store the steps of new flows; return the outcomes of these with the steps that are announced."""
    rows = [_row(step, seal) for flow in flows for step in flow.steps]
    stored = connection.execute(_ACCEPT, {"rows": dump_json(rows)}).all()
    announced = {row.id for row in stored if row.announced_at is not None}
    return {
        flow.id: replace(outcome, announced_steps=tuple(step.id for step in flow.steps if step.id in announced))
        for flow in flows
        if isinstance(outcome := outcomes[flow.id], Accepted)
    }


def _write_rows(connection: Connection, jobs: Sequence[NewJob], seal: Seal) -> None:
    """Store what faces keep beside new jobs, with one call for each face."""
    by_face: dict[type[FaceRow], list[NewJob]] = {}
    for job in jobs:
        if job.response is not None:
            by_face.setdefault(type(job.response), []).append(job)
    for face, its_jobs in by_face.items():
        face.write(connection, its_jobs, seal)


def _is_replay(outcome: Accepted | HeadraceError) -> TypeGuard[Accepted]:
    return isinstance(outcome, Accepted) and outcome.replayed


def _replay(job: NewJob, fingerprint: str, job_id: str) -> Accepted | HeadraceError:
    idempotency = job.idempotency
    if idempotency is not None and fingerprint in (idempotency.fingerprint, *idempotency.also):
        return Accepted(job_id=job_id, replayed=True, announced=False)
    return IdempotencyKeyReused("this Idempotency-Key was used before with a different body", param="Idempotency-Key")


def _holders(connection: Connection, jobs: Iterable[NewJob]) -> dict[IdempotencyRow | None, tuple[str, str]]:
    """Return fingerprint and job id of the jobs' keys that are stored."""
    keys = [key for job in jobs if (key := _key(job)) is not None]
    tenants, routes, names = (list(column) for column in zip(*keys, strict=True)) if keys else ([], [], [])
    found = connection.execute(_HOLDERS, {"tenants": tenants, "routes": routes, "keys": names})
    return {(row.tenant_id, row.route, row.key): (row.fingerprint, row.job_id) for row in found}


def _key(job: NewJob) -> IdempotencyRow | None:
    return None if job.idempotency is None else (job.tenant_id, job.idempotency.route, job.idempotency.key)


def _row(job: NewJob, seal: Seal) -> dict[str, object]:
    idempotency = job.idempotency
    return {
        **{name: getattr(job, name) for name in _COPIED},
        **seal_job(seal, job.tenant_id, job.id, {"payload": job.payload, "metadata": job.metadata}),
        "deadline_s": job.deadline_s,
        "announce": job.announce,
        "goes_ahead": job.goes_ahead,
        "route": idempotency and idempotency.route,
        "key": idempotency and idempotency.key,
        "key_fingerprint": idempotency and idempotency.fingerprint,
        "fallback": None if job.fallback is None else _fallback_row(job, job.fallback, seal),
    }


def _fallback_row(job: NewJob, fallback: Fallback, seal: Seal) -> dict[str, object]:
    # Sealed as the payload of the job, so that it becomes that without being opened.
    sealed = seal_job(seal, job.tenant_id, job.id, {"payload": fallback.payload})
    return {**asdict(fallback), **sealed}
