"""The worker's side of a job: claim, renew, finish, release. Each is one statement for a whole batch of jobs.

Fencing: a claim raises the job's epoch, and every later write names the epoch it was given. A worker that was paused
past its lease finds that its epoch matches no row: its write changes nothing, and the job's newer attempt is safe.
Leases are counted by the database's clock.

No statement waits for a row that another transaction has locked, for it would hold up all the others. It is skipped
(``SKIP LOCKED``); ``store.jobs.unclaimed`` tells it from one that is not to be had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import RowMapping, text

from store.db.database import Database, dump_json
from store.db.presence import GONE_AFTER_S
from store.encryption.encrypted_columns import open_columns, seal_columns, seal_job
from store.encryption.vault import Place, Vault
from store.errors import CannotOpen, InvalidRequest
from store.failpoints import failpoint
from store.jobs.terminal import (
    COMPLETED_AFTER,
    CONCLUDED,
    DEAD_LETTER_CODES,
    ENDED,
    ERROR_AFTER,
    STATE_AFTER,
    conclude,
    verdict,
)
from store.payloads.logprobs import Logprobs, groups_as_json
from store.schema.job_states import JobState
from store.streams.checkpoints import Checkpoint, Lineage

log = structlog.get_logger(__name__)

_CHECKPOINT = ("deltas", "token_ids", "logprobs")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Claim:
    """A job that is ours under ``epoch`` until the lease runs out. ``remaining_s`` is the time to its deadline.

    ``checkpoint`` is what an earlier attempt left when it was handed back. ``crashes`` is how many workers have died
    with this job in their hands; a suspect must run alone in its process.
    """

    job_id: str
    tenant_id: str
    class_rank: int
    epoch: int
    attempt: int
    model: str
    model_version: int
    payload: dict[str, Any]
    input_tokens: int
    remaining_s: float | None
    queued_s: float
    max_attempts: int
    crashes: int = 0
    is_suspect: bool = False
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """Which jobs are still ours, and which of those their owners want cancelled. The rest belongs to someone else.

    ``renewed`` are those of ``held`` whose lease is longer now. The others were locked by another transaction: they are
    ours until their lease runs out.
    """

    held: frozenset[str]
    renewed: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True)
class Finish:
    """How an attempt ended: a terminal ``state``, what it produced, and the whole text's deltas in order.

    ``lineage`` says which attempts the deltas came from; without one they are all this attempt's. ``logprobs`` are
    those of each delta's tokens, none if the job does not ask. ``tenant_id`` is the claim's; what is sealed needs it.
    """

    job_id: str
    epoch: int
    state: JobState
    output: dict[str, Any] | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    deltas: Sequence[str] = field(default=())
    lineage: Lineage = ()
    logprobs: tuple[Logprobs, ...] = ()
    tenant_id: str = ""

    def __post_init__(self) -> None:
        if not self.state.is_terminal:
            raise ValueError(f"a job cannot finish as {self.state}")


@dataclass(frozen=True, slots=True)
class Release:
    """An attempt that is given back unfinished.

    ``charge``: it counts as one of the job's attempts (its engine failed; a drain is not charged). ``crashed``: the
    worker is dying, perhaps of this job, so it must run alone next time. ``cleared``: it ran alone for a while and
    nothing happened, so it need not any more. ``checkpoint`` is everything emitted so far, if that is known for
    certain; None keeps what is stored. ``tenant_id`` is the claim's; a checkpoint that is sealed needs it.
    ``later``: it counts as announced just now, so that it is not announced again at once.
    """

    job_id: str
    epoch: int
    charge: bool = False
    crashed: bool = False
    cleared: bool = False
    checkpoint: Checkpoint | None = None
    tenant_id: str = ""
    later: bool = False


# What is too long for this worker is left to one that can hold it, and taken, to be refused, where none that lives can.
_IS_ELSEWHERES = """
GREATEST(cost_tokens, input_tokens) > CAST(:capacity AS int) AND EXISTS (
    SELECT FROM worker_processes AS other
    WHERE other.queue = :queue AND other.seen_at > now() - make_interval(secs => :gone_after_s)
        AND COALESCE(other.capacity_tokens >= GREATEST(jobs.cost_tokens, jobs.input_tokens), true))
"""

_PAUSED = "EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = :queue)"

# ``state || ''`` keeps Postgres from the indexes of queued jobs. While its statistics are those of an empty queue they
# look cheaper than the primary key, and it would read a million jobs to find thirty.
OPEN = f"""
    SELECT id FROM jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND queue = :queue AND state || '' = 'queued' AND cancel_requested_at IS NULL
        AND (deadline_at IS NULL OR deadline_at > now()) AND is_suspect = :suspects AND NOT {_PAUSED}
        AND (CAST(:capacity AS int) IS NULL OR NOT ({_IS_ELSEWHERES}))
"""

_CLAIM = text(f"""
WITH open AS (
    {OPEN} FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE jobs SET
        state = 'running', epoch = epoch + 1, attempt = attempt + 1, owner = :owner,
        lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s),
        started_at = COALESCE(started_at, clock_timestamp())
    FROM open WHERE jobs.id = open.id AND jobs.state || '' = 'queued'
    RETURNING jobs.*
), charged AS (
    INSERT INTO attempts (job_id, epoch, attempt, worker) SELECT id, epoch, attempt, owner FROM claimed
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT id, 'started', epoch, jsonb_build_object('attempt', attempt, 'worker', owner) FROM claimed
)
SELECT
    claimed.id AS job_id, tenant_id, class_rank, epoch, attempt, model, model_version, payload, input_tokens,
    CAST(extract(epoch FROM deadline_at - clock_timestamp()) AS float8) AS remaining_s,
    CAST(extract(epoch FROM clock_timestamp() - created_at) AS float8) AS queued_s, max_attempts,
    crashes, is_suspect, to_jsonb(job_checkpoints) AS checkpoint
FROM claimed LEFT JOIN job_checkpoints ON job_checkpoints.job_id = claimed.id
""")


def claim(
    db: Database,
    owner: str,
    queue: str,
    job_ids: Sequence[str],
    lease_s: float,
    *,
    suspects: bool = False,
    capacity: int | None = None,
) -> dict[str, Claim]:
    """Take those of the jobs that are queued, charging an attempt. Held, ended and overdue ones are simply absent.

    So are those whose row is locked. Either suspects are taken, which the caller runs alone, or the others. Of a paused
    queue nothing is taken. A job of more tokens than ``capacity`` is left to another worker that lives and can hold it;
    it is taken if there is none.
    """
    values = {"owner": owner, "queue": queue, "ids": list(job_ids), "lease_s": float(lease_s), "suspects": suspects}
    values |= {"capacity": capacity, "gone_after_s": GONE_AFTER_S}
    with db.autocommit() as connection:
        rows = connection.execute(_CLAIM, values).mappings().all()
    if rows:
        failpoint("claim.done")
    return _opened(db, rows)


def _opened(db: Database, rows: Sequence[RowMapping]) -> dict[str, Claim]:
    """Return the claims of these rows. One that this process cannot open goes back, for a worker that has the key.

    Not at once: where no worker has it, the job would go round as fast as it could.
    """
    claims: dict[str, Claim] = {}
    for row in rows:
        try:
            claims[row["job_id"]] = _claimed(row, db.vault)
        except CannotOpen as error:
            log.error("payload_not_opened", job_id=row["job_id"], error=error.message)
            release(db, [Release(row["job_id"], row["epoch"], later=True)])
    return claims


def _claimed(row: RowMapping, vault: Vault) -> Claim:
    payload = vault.open(row["payload"], Place(row["tenant_id"], "jobs", "payload", row["job_id"]))
    checkpoint = row["checkpoint"]
    if checkpoint is not None:
        place = Place(row["tenant_id"], "job_checkpoints", "", row["job_id"])
        checkpoint = open_columns(vault, place, checkpoint, *_CHECKPOINT)
    return Claim(**{**row, "payload": payload, "checkpoint": Checkpoint.from_json(checkpoint)})


# What is ours is read without a lock. A row that is locked is renewed in a later round.
_RENEW = text("""
WITH ours AS MATERIALIZED (
    SELECT jobs.id, jobs.epoch, cancel_requested_at IS NOT NULL AS is_cancelled
    FROM jobs JOIN unnest(CAST(:ids AS text[]), CAST(:epochs AS bigint[])) AS named(id, epoch) USING (id, epoch)
    WHERE state = 'running' AND owner = :owner
), free AS (
    SELECT jobs.id, jobs.epoch FROM jobs JOIN ours USING (id, epoch)
    WHERE state = 'running' FOR NO KEY UPDATE OF jobs SKIP LOCKED
), renewed AS (
    UPDATE jobs SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
    FROM free WHERE jobs.id = free.id AND jobs.epoch = free.epoch AND jobs.state = 'running'
    RETURNING jobs.id
)
SELECT ours.id, ours.is_cancelled, renewed.id IS NOT NULL AS is_renewed FROM ours LEFT JOIN renewed USING (id)
""")


def renew(db: Database, owner: str, held: Mapping[str, int], lease_s: float) -> Renewal:
    """Prolong the leases of the jobs held under these epochs; what is absent from ``held`` of the answer must stop."""
    failpoint("renew.before")
    values = {"owner": owner, "lease_s": float(lease_s), "ids": list(held), "epochs": list(held.values())}
    with db.autocommit() as connection:
        rows = connection.execute(_RENEW, values).all()
    return Renewal(
        held=frozenset(row.id for row in rows),
        renewed=frozenset(row.id for row in rows if row.is_renewed),
        cancelled=frozenset(row.id for row in rows if row.is_cancelled),
    )


# The outcome and all that it leaves behind in one statement, which is a transaction by itself.
_FINISH = text(f"""
WITH done AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        id text, epoch bigint, state text, output jsonb, error jsonb, usage jsonb, deltas jsonb, num_deltas int,
        lineage jsonb, logprobs jsonb)
), held AS (
    SELECT jobs.id
    FROM jobs JOIN done USING (id, epoch) WHERE jobs.state = 'running'
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
), ended AS (
    UPDATE jobs SET
        state = done.state, output = done.output, error = done.error, usage = done.usage,
        completed_at = clock_timestamp(), owner = NULL, lease_expires_at = NULL
    FROM done JOIN held USING (id)
    WHERE jobs.id = done.id AND jobs.epoch = done.epoch AND jobs.state = 'running'
    RETURNING {ENDED}
), streams AS (
    INSERT INTO job_streams (job_id, epoch, deltas, num_deltas, lineage, logprobs)
    SELECT id, done.epoch, done.deltas, done.num_deltas, done.lineage, done.logprobs
    FROM done JOIN ended USING (id)
    WHERE done.num_deltas > 0
), {CONCLUDED}
""")


def finish(db: Database, finishes: Sequence[Finish]) -> set[str]:
    """End the jobs and return the ids of those that ended; a stale epoch's result is refused, a locked row left out."""
    failpoint("finish.before")
    rows = list({finish.job_id: _row(finish, db.vault) for finish in reversed(finishes)}.values())
    values = {"rows": _encode(rows), "dead": list(DEAD_LETTER_CODES)}
    with db.autocommit() as connection:
        ended = connection.execute(_FINISH, values).scalars().all()
    failpoint("finish.committed")
    return set(ended)


# Released for good reason (a drain) the attempt is not charged. A charged job that has no attempt left has failed, one
# whose workers kept dying is poison, and one whose owner asked for its end has it.
_RELEASE = text(f"""
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        id text, epoch bigint, charge bool, crashed bool, cleared bool, checkpoint jsonb, later bool)
), held AS (
    SELECT jobs.id FROM jobs JOIN given USING (id, epoch) WHERE jobs.state = 'running'
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
), judged AS (
    SELECT given.*, {verdict("given.charge", "given.crashed")} AS verdict
    FROM given JOIN held USING (id) JOIN jobs USING (id)
), let_go AS (
    UPDATE jobs SET
        state = {STATE_AFTER}, error = {ERROR_AFTER}, completed_at = {COMPLETED_AFTER},
        attempt = attempt - CASE WHEN judged.charge THEN 0 ELSE 1 END,
        crashes = crashes + CASE WHEN judged.crashed THEN 1 ELSE 0 END,
        is_suspect = (is_suspect OR judged.crashed) AND NOT judged.cleared,
        owner = NULL, lease_expires_at = NULL, announced_at = CASE WHEN later THEN now() END
    FROM judged WHERE jobs.id = judged.id AND jobs.epoch = judged.epoch AND jobs.state = 'running'
    RETURNING jobs.id, jobs.state, jobs.epoch, judged.charge, judged.checkpoint
), kept AS (
    INSERT INTO job_checkpoints (job_id, deltas, token_ids, lineage, logprobs)
    SELECT id, checkpoint -> 'deltas', checkpoint -> 'token_ids', checkpoint -> 'lineage', checkpoint -> 'logprobs'
    FROM let_go WHERE checkpoint IS NOT NULL AND state = 'queued'
    ON CONFLICT (job_id) DO UPDATE SET
        deltas = EXCLUDED.deltas, token_ids = EXCLUDED.token_ids, lineage = EXCLUDED.lineage,
        logprobs = EXCLUDED.logprobs
), closed AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'released'
    FROM let_go WHERE attempts.job_id = let_go.id AND attempts.epoch = let_go.epoch
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT id, 'released', epoch, jsonb_build_object('charged', charge) FROM let_go
)
SELECT id, state FROM let_go
""")


def release(db: Database, releases: Sequence[Release]) -> set[str]:
    """Hand jobs back to the queue; return the ids of those that went, not those whose row is locked."""
    rows = [_release_row(release, db.vault) for release in releases]
    with db.begin() as connection:
        found = connection.execute(_RELEASE, {"rows": _encode(rows)}).all()
        conclude(connection, [row.id for row in found if row.state != JobState.QUEUED])
    return {row.id for row in found}


def _release_row(release: Release, vault: Vault) -> dict[str, object]:
    checkpoint = None if release.checkpoint is None else release.checkpoint.as_json()
    if checkpoint is not None:
        place = Place(release.tenant_id, "job_checkpoints", "", release.job_id)
        checkpoint |= seal_columns(vault, place, {name: checkpoint[name] for name in _CHECKPOINT if name in checkpoint})
    return {
        "id": release.job_id,
        "epoch": release.epoch,
        "charge": release.charge,
        "crashed": release.crashed,
        "cleared": release.cleared,
        "checkpoint": checkpoint,
        "later": release.later,
    }


def _row(finish: Finish, vault: Vault) -> dict[str, object]:
    said = {
        "output": finish.output,
        "error": finish.error,
        "deltas": list(finish.deltas),
        "logprobs": groups_as_json(finish.logprobs),
    }
    if vault.is_on:
        said = _sealed(vault, finish, said)
    return {
        **said,
        "id": finish.job_id,
        "epoch": finish.epoch,
        "state": finish.state,
        "usage": finish.usage,
        "num_deltas": len(finish.deltas),
        "lineage": [list(link) for link in finish.lineage or (((finish.epoch, 0),) if finish.deltas else ())],
    }


def _sealed(vault: Vault, finish: Finish, said: dict[str, Any]) -> dict[str, Any]:
    said = {name: _storable(value) for name, value in said.items()}
    stream = Place(finish.tenant_id, "job_streams", "", finish.job_id)
    return {
        **seal_job(vault, finish.tenant_id, finish.job_id, said),
        **seal_columns(vault, stream, {"deltas": said["deltas"], "logprobs": said["logprobs"]}),
    }


def _encode(rows: list[dict[str, object]]) -> str:
    """Encode what a model produced. It may say what jsonb cannot hold; that must not keep its job from ending."""
    try:
        return dump_json(rows)
    except InvalidRequest:
        return dump_json(_storable(rows))


def _storable(value: object) -> object:
    """Put U+FFFD in the place of U+0000 and ``?`` in that of half surrogate pairs."""
    match value:
        case str():
            return value.replace("\0", "\ufffd").encode(errors="replace").decode()
        case dict():
            return {_storable(key): _storable(item) for key, item in value.items()}
        case list():
            return [_storable(item) for item in value]
        case _:
            return value
