"""Jobs for the worker: claim, renew, finish, release. Each is one statement for a whole batch of jobs.

Fencing: a claim raises the job's epoch, and every later write names the epoch of its claim. The epoch of a worker that
was paused past its lease matches no row: its write changes nothing, and the job's newer attempt is safe. Leases are
counted by the database's clock.

No statement waits for a row that another transaction has locked, because the whole batch would wait. Such a row is
skipped (``SKIP LOCKED``); ``still_open`` and ``still_running`` find out whether a job was skipped or is not available.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import RowMapping

from headrace.store.db.database import Database
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.errors import CannotOpen, Unavailable
from headrace.store.failpoints import failpoint
from headrace.store.jobs import claim_queries
from headrace.store.jobs.job_rows import Finish as Finish
from headrace.store.jobs.job_rows import encode, end_parts, row_of
from headrace.store.jobs.parent_part import BegunStep, Settled, parent_part
from headrace.store.jobs.terminal import DEAD_LETTER_CODES, conclude
from headrace.store.schema.job_states import JobState
from headrace.store.seal import Seal, SealContext, open_columns, seal_columns
from headrace.store.streams.checkpoints import Checkpoint

log = structlog.get_logger(__name__)

_CHECKPOINT = ("deltas", "token_ids", "logprobs")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Claim:
    """A job that this worker holds under ``epoch`` until the lease runs out. ``remaining_s``: time to its deadline.

    ``checkpoint``: what an earlier attempt had emitted when it was released. ``crashes``: the number of workers that
    died while they ran this job. A suspect must run alone in its process. ``restarts_after``: attempts up to this epoch
    were of another version, so none of them is continued. ``is_source``: as in ``Finish``. ``traceparent``: the parent
    of its spans, if the job is traced; then ``waited_s`` is the time since an earlier attempt ended, None for the first
    attempt. ``claimed_at`` is the database's time. ``parent_id`` and ``step``: the flow of a step, and its name in it.
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
    restarts_after: int = 0
    is_source: bool = False
    traceparent: str | None = None
    claimed_at: datetime | None = None
    waited_s: float | None = None
    task: str = ""
    parent_id: str | None = None
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The jobs that this worker still holds (``held``), and those of them with a cancel request (``cancelled``).

    ``renewed``: the jobs of ``held`` with a new lease. The rows of the others were locked by another transaction; this
    worker holds them until the old lease runs out.
    """

    held: frozenset[str]
    renewed: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True)
class Release:
    """An attempt that is given back unfinished.

    ``charge``: it counts as one of the job's attempts (its engine failed; a drain is not charged). ``crashed``: the
    worker is dying, perhaps because of this job, so the job must run alone next time (for an inference server's
    jobs: from the second time on, see ``store.jobs.terminal.blamed``). ``cleared``: the job ran alone
    for a while without a crash, so it is no suspect any more. ``checkpoint``: everything emitted so far, if that is
    certain; None keeps the stored one. ``tenant_id``: the claim's, to encrypt the checkpoint. ``later``: mark the job
    as announced now, so that it is not announced again at once. ``first_token_ms``: from the claim to the attempt's own
    first token, if it had one. ``parent_id``: the flow of a step.
    """

    job_id: str
    epoch: int
    charge: bool = False
    crashed: bool = False
    cleared: bool = False
    checkpoint: Checkpoint | None = None
    tenant_id: str = ""
    later: bool = False
    first_token_ms: float | None = None
    parent_id: str | None = None


def claim(
    db: Database,
    owner: str,
    queue: str,
    job_ids: Sequence[str],
    lease_s: float,
    *,
    suspects: bool = False,
    capacity: int | None = None,
    engine: str | None = None,
    adapters: Sequence[str] = (),
    on_begun: Callable[[Sequence[str]], None] = lambda _answers: None,
) -> dict[str, Claim]:
    """Claim the queued jobs among ``job_ids``, charging an attempt. Running, ended and overdue jobs are absent.

    So are jobs with a locked row, and all jobs of a paused queue. ``suspects``: claim only suspects, which the caller
    runs alone; otherwise only the other jobs. A job of more tokens than ``capacity`` is left to a live worker that can
    hold it; it is claimed if there is none. ``engine``: the inference server of the worker, recorded with the attempts.
    ``adapters``: more queues that the worker serves. ``on_begun``: called with the steps whose readers are to be woken,
    because steps of their flows have begun.
    """
    queues = [queue, *adapters]
    values = {"owner": owner, "queues": queues, "ids": list(job_ids), "lease_s": float(lease_s), "suspects": suspects}
    values |= {"capacity": capacity, "gone_after_s": GONE_AFTER_S, "engine": engine}
    with db.autocommit() as connection:
        rows = connection.execute(claim_queries.CLAIM, values).mappings().all()
    if rows:
        failpoint("claim.done")
    claims = _opened(db, rows)
    if steps := [claim for claim in claims.values() if claim.parent_id is not None]:
        on_begun(_note_begun(db, steps))
    return claims


def _note_begun(db: Database, steps: Sequence[Claim]) -> Sequence[str]:
    """Note in the flows of these steps that they have begun. Without it a flow begins when its first step ends."""
    failpoint("flow.noting")
    begun = [BegunStep(one.parent_id or "", one.job_id, one.step or "", one.attempt) for one in steps]
    try:
        return parent_part().note_begun(db, begun)
    except Unavailable as error:
        log.warning("step_not_noted", num_steps=len(steps), error=error.message)
        return []


def _opened(db: Database, rows: Sequence[RowMapping]) -> dict[str, Claim]:
    """Return the claims of these rows. A job that cannot be decrypted is released, for a worker that has the key.

    It is released with ``later``: where no worker has the key it would otherwise be claimed again and again at once.
    """
    claims: dict[str, Claim] = {}
    for row in rows:
        try:
            claims[row["job_id"]] = _claimed(row, db.seal)
        except CannotOpen as error:
            log.error("payload_not_opened", job_id=row["job_id"], error=error.message)
            release(db, [Release(row["job_id"], row["epoch"], later=True, parent_id=row["parent_id"])])
    return claims


def _claimed(row: RowMapping, seal: Seal) -> Claim:
    payload = seal.open(row["payload"], SealContext(row["tenant_id"], "jobs", "payload", row["job_id"]))
    checkpoint = row["checkpoint"]
    if checkpoint is not None:
        place = SealContext(row["tenant_id"], "job_checkpoints", "", row["job_id"])
        checkpoint = open_columns(seal, place, checkpoint, *_CHECKPOINT)
    return Claim(**{**row, "payload": payload, "checkpoint": Checkpoint.from_json(checkpoint)})


def renew(db: Database, owner: str, held: Mapping[str, int], lease_s: float) -> Renewal:
    """Renew the leases of the jobs held under these epochs. A job absent from ``held`` of the result must stop."""
    failpoint("renew.before")
    values = {"owner": owner, "lease_s": float(lease_s), "ids": list(held), "epochs": list(held.values())}
    with db.autocommit() as connection:
        rows = connection.execute(claim_queries.RENEW, values).all()
    return Renewal(
        held=frozenset(row.id for row in rows),
        renewed=frozenset(row.id for row in rows if row.is_renewed),
        cancelled=frozenset(row.id for row in rows if row.is_cancelled),
    )


def finish(
    db: Database,
    finishes: Sequence[Finish],
    on_settled: Callable[[Settled], None] = lambda _settled: None,
) -> set[str]:
    """End the jobs; return the ids of those that ended. Stale epochs and locked rows are left out.

    So are steps of a flow with a locked row. ``on_settled`` is called after the commit if steps have ended.
    """
    failpoint("finish.before")
    rows = _end_rows(finishes, db.seal)
    concerned = [part for part in end_parts() if any(map(part.concerns, finishes))]
    steps = {finish.job_id: finish.parent_id for finish in finishes if finish.parent_id is not None}
    more = {finish.job_id: finish.stored for finish in finishes if finish.stored is not None}
    settled = Settled()
    # Most jobs concern no feature and are no steps: then it is one statement, which is its own transaction.
    with db.begin() if concerned or steps or more else db.autocommit() as connection:
        if steps:
            flows = parent_part().lock_free(connection, {*steps.values()})
            free = [one for one in finishes if one.parent_id is None or one.parent_id in flows]
            finishes = parent_part().checked(connection, free)
            rows = _end_rows(finishes, db.seal)
        ended = set(connection.execute(claim_queries.FINISH, {"rows": rows, "dead": list(DEAD_LETTER_CODES)}).scalars())
        for part in concerned:
            mine = [finish for finish in finishes if finish.job_id in ended and part.concerns(finish)]
            part.write(connection, mine, db.seal)
        if steps:
            done = [finish for finish in finishes if finish.job_id in ended]
            settled = parent_part().settle(connection, flows, db.seal, ended=steps.keys() & ended, finishes=done)
        for job_id in more.keys() & ended:
            more[job_id].write(connection, db.seal)
        if steps:
            failpoint("flow.before_commit")
        if more:
            failpoint("passages.before_commit")
    failpoint("finish.committed")
    if steps:
        on_settled(settled)
    return ended


def _end_rows(finishes: Sequence[Finish], seal: Seal) -> str:
    return encode(list({finish.job_id: row_of(finish, seal) for finish in reversed(finishes)}.values()))


def release(db: Database, releases: Sequence[Release]) -> set[str]:
    """Give jobs back to the queue; return their ids. Stale epochs, locked rows and steps of flows with a locked row are
    left out."""
    steps = {release.job_id: release.parent_id for release in releases if release.parent_id is not None}
    with db.begin() as connection:
        flows = parent_part().lock_free(connection, {*steps.values()}) if steps else frozenset()
        free = [release for release in releases if release.parent_id is None or release.parent_id in flows]
        rows = [_release_row(release, db.seal) for release in free]
        found = connection.execute(claim_queries.RELEASE, {"rows": encode(rows)}).all()
        ended = [row.id for row in found if row.state != JobState.QUEUED]
        conclude(connection, ended)
        if steps:
            parent_part().settle(connection, flows, db.seal, ended=steps.keys() & set(ended))
    return {row.id for row in found}


def _release_row(release: Release, seal: Seal) -> dict[str, object]:
    checkpoint = None if release.checkpoint is None else release.checkpoint.as_json()
    if checkpoint is not None:
        place = SealContext(release.tenant_id, "job_checkpoints", "", release.job_id)
        checkpoint |= seal_columns(seal, place, {name: checkpoint[name] for name in _CHECKPOINT if name in checkpoint})
    return {
        "id": release.job_id,
        "epoch": release.epoch,
        "charge": release.charge,
        "crashed": release.crashed,
        "cleared": release.cleared,
        "checkpoint": checkpoint,
        "later": release.later,
        "first_token_ms": release.first_token_ms,
    }


class RowLocked(Unavailable):
    """Another transaction has locked the job's row, so the statement left it out. The caller can try again."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"another transaction has locked the row of {job_id}", code="database_unavailable")


def still_open(
    db: Database, queue: str, job_ids: Sequence[str], *, capacity: int | None = None, adapters: Sequence[str] = ()
) -> set[str]:
    """Return the jobs that ``claim`` may take. For jobs that it has just left out: those with a locked row."""
    with db.autocommit() as connection:
        values = {"queues": [queue, *adapters], "ids": list(job_ids), "suspects": False}
        values |= {"capacity": capacity, "gone_after_s": GONE_AFTER_S}
        return set(connection.execute(claim_queries.CLAIMABLE, values).scalars())


def still_running(db: Database, held: Mapping[str, int]) -> set[str]:
    """Return the jobs that run under these epochs. For jobs that ``finish`` or ``release`` has just left out: those
    with a locked row."""
    with db.autocommit() as connection:
        return set(
            connection.execute(
                claim_queries.STILL_RUNNING, {"ids": list(held), "epochs": list(held.values())}
            ).scalars()
        )


def has_ended(db: Database, finish: Finish) -> bool:
    """Return whether ``finish`` has ended its job. For an end whose answer was lost; the sweeper's end is another."""
    values = {"id": finish.job_id, "epoch": finish.epoch, "state": finish.state.value}
    with db.autocommit() as connection:
        return bool(connection.execute(claim_queries.HAS_ENDED, values).scalar_one())


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A job that was not to be had: its state, and of its error at least the ``code``."""

    state: JobState
    error: Mapping[str, Any] | None


def unclaimed(db: Database, job_id: str) -> Unclaimed | None:
    """Return why a job could not be claimed; None if it is gone. Raises Unavailable."""
    with db.autocommit() as connection:
        row = connection.execute(claim_queries.UNCLAIMED, {"id": job_id}).one_or_none()
    return None if row is None else Unclaimed(JobState(row.state), {"code": row.code} if row.code else None)


def owned(db: Database, owner: str) -> list[Release]:
    """Return every running job of the owner, as ``release`` gives it back uncharged."""
    with db.autocommit() as connection:
        rows = connection.execute(claim_queries.OWNED, {"owner": owner}).all()
    return [Release(row.id, row.epoch, parent_id=row.parent_id) for row in rows]
