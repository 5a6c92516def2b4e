"""The real statements behind the model's doors, and the two held against one another.

Time is moved by moving every time in the tables the other way; the model's steps are so large that the seconds which
really pass decide nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.jobs import claims, jobs, sweeps
from headrace.store.jobs.claims import Finish, Release
from headrace.store.scheduling import dispatch_queries
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint
from tests.reliability.model import GRACE_S, LEASE_S, STALE_S, GivenBack, Held, Model, Row, facts
from tests.store.making import QUEUE, MakeJob

T = TypeVar("T")

_SHIFT = text("""
UPDATE jobs SET
    lease_expires_at = lease_expires_at - make_interval(secs => :s),
    deadline_at = deadline_at - make_interval(secs => :s),
    announced_at = announced_at - make_interval(secs => :s),
    created_at = created_at - make_interval(secs => :s)
""")

_ROWS = text("""
SELECT jobs.*, jobs.error ->> 'code' AS code, COALESCE(jsonb_array_length(kept.deltas), 0) AS checkpoint
FROM jobs LEFT JOIN job_checkpoints AS kept ON kept.job_id = jobs.id
""")


class Statements:
    """A ``Store`` on Postgres."""

    def __init__(self, db: Database, make_job: MakeJob) -> None:
        self._db = db
        self._make_job = make_job
        self._tenant_id = make_job().tenant_id
        with db.begin() as connection:
            for table in ("jobs", "job_events", "job_terminal"):  # the others follow their jobs
                connection.execute(text(f"DELETE FROM {table}"))

    def accept(self, new: Mapping[str, tuple[int, int]], *, announce: bool) -> bool:
        wave = [
            self._make_job(id=job_id, max_attempts=attempts, deadline_s=float(deadline_s), announce=announce)
            for job_id, (attempts, deadline_s) in new.items()
        ]
        (announced,) = {outcome.announced for outcome in jobs.accept(self._db, wave)}  # type: ignore[union-attr]
        return bool(announced)

    def claim(self, owner: str, ids: Sequence[str], *, suspects: bool) -> list[Held]:
        found = claims.claim(self._db, owner, QUEUE, ids, LEASE_S, suspects=suspects)
        return [
            Held(c.job_id, c.epoch, c.crashes, c.is_suspect, c.checkpoint.num_deltas if c.checkpoint else 0)
            for _, c in sorted(found.items())
        ]

    def renew(self, owner: str, held: Mapping[str, int]) -> tuple[set[str], set[str]]:
        renewal = claims.renew(self._db, owner, held, LEASE_S)
        return set(renewal.held), set(renewal.cancelled)

    def finish(self, job_id: str, epoch: int, state: JobState) -> bool:
        return job_id in claims.finish(self._db, [Finish(job_id, epoch, state, {"text": "x"}, None, None, ("x",))])

    def release(self, given: Sequence[GivenBack]) -> set[str]:
        return claims.release(self._db, [_release(one) for one in given])

    def cancel(self, job_id: str) -> bool:
        try:
            jobs.request_cancel(self._db, self._tenant_id, job_id)
        except Conflict:
            return False
        return True

    def sweep(self) -> None:
        sweeps.sweep_leases(self._db)

    def expire(self) -> set[str]:
        return set(sweeps.expire_overdue(self._db, grace_s=GRACE_S))

    def take_waiting(self, n: int) -> set[str]:
        return set(dispatch_queries.take_waiting(self._db, QUEUE, n))

    def take_stale(self, n: int) -> set[str]:
        return set(dispatch_queries.take_stale(self._db, QUEUE, STALE_S, n))

    def candidates(self, n: int, *, suspects: bool, older_than_s: int) -> set[str]:
        return set(dispatch_queries.claim_candidates(self._db, QUEUE, n, suspects=suspects, older_than_s=older_than_s))

    def forget(self) -> None:
        dispatch_queries.forget_announcements(self._db)

    def advance(self, seconds: int) -> None:
        with self._db.begin() as connection:
            connection.execute(_SHIFT, {"s": float(seconds)})

    def rows(self) -> dict[str, Row]:
        with self._db.begin() as connection:
            return {row["id"]: _row(row) for row in connection.execute(_ROWS).mappings()}

    def recorded_ends(self) -> dict[str, str]:
        """The terminal table by job; its key prevents a second end."""
        sql = text("SELECT job_id, state FROM job_terminal WHERE job_id IN (SELECT id FROM jobs)")
        with self._db.begin() as connection:
            return {row.job_id: row.state for row in connection.execute(sql)}

    def recorded_events(self) -> list[tuple[str, str]]:
        """The ends that the timelines name, each as often as it does."""
        of_jobs = "kind = ANY(:ends) AND job_id IN (SELECT id FROM jobs)"
        sql = text(f"SELECT job_id, kind FROM job_events WHERE {of_jobs} ORDER BY job_id")
        with self._db.begin() as connection:
            return [tuple(row) for row in connection.execute(sql, {"ends": [s for s in JobState if s.is_terminal]})]

    def attempts(self) -> dict[tuple[str, int], bool]:
        """The attempts on record by job and epoch, and whether each is open; an open one has no outcome."""
        with self._db.begin() as connection:
            rows = list(
                connection.execute(text("SELECT job_id, epoch, ended_at IS NULL AS open, outcome FROM attempts"))
            )
        assert all((row.outcome is None) == row.open for row in rows), rows
        return {(row.job_id, row.epoch): row.open for row in rows}

    def dead_letters(self) -> set[str]:
        """The jobs in the dead letters."""
        with self._db.begin() as connection:
            return set(connection.execute(text("SELECT job_id FROM dead_letters")).scalars())


def _release(one: GivenBack) -> Release:
    kept = None
    if one.checkpoint is not None:
        kept = Checkpoint(("x",) * one.checkpoint, ((1,),) * one.checkpoint, ((one.epoch, 0),))
    return Release(one.job_id, one.epoch, charge=one.charge, crashed=one.crashed, cleared=one.cleared, checkpoint=kept)


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        row["max_attempts"],
        0,
        state=JobState(row["state"]),
        epoch=row["epoch"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        is_suspect=row["is_suspect"],
        owner=row["owner"],
        lease_at=None if row["lease_expires_at"] is None else 0,
        announced_at=None if row["announced_at"] is None else 0,
        is_cancel_wanted=row["cancel_requested_at"] is not None,
        code=row["code"],
        checkpoint=row["checkpoint"],
    )


class Twins:
    """A ``Store`` that does everything twice, on the model and on the database, and sees that they agree.

    In which order waiting jobs are taken is fairness, which has tests of its own: there the model follows the database,
    as long as that takes jobs which may be taken, and as many as it should.
    """

    def __init__(self, real: Statements) -> None:
        self.model = Model()
        self.real = real

    def accept(self, new: Mapping[str, tuple[int, int]], *, announce: bool) -> bool:
        return self._agreed(self.model.accept(new, announce=announce), self.real.accept(new, announce=announce))

    def claim(self, owner: str, ids: Sequence[str], *, suspects: bool) -> list[Held]:
        return self._agreed(
            self.model.claim(owner, ids, suspects=suspects), self.real.claim(owner, ids, suspects=suspects)
        )

    def renew(self, owner: str, held: Mapping[str, int]) -> tuple[set[str], set[str]]:
        return self._agreed(self.model.renew(owner, held), self.real.renew(owner, held))

    def finish(self, job_id: str, epoch: int, state: JobState) -> bool:
        return self._agreed(self.model.finish(job_id, epoch, state), self.real.finish(job_id, epoch, state))

    def release(self, given: Sequence[GivenBack]) -> set[str]:
        return self._agreed(self.model.release(given), self.real.release(given))

    def cancel(self, job_id: str) -> bool:
        return self._agreed(self.model.cancel(job_id), self.real.cancel(job_id))

    def sweep(self) -> None:
        self._agreed(self.model.sweep(), self.real.sweep())

    def expire(self) -> set[str]:
        return self._agreed(self.model.expire(), self.real.expire())

    def take_waiting(self, n: int) -> set[str]:
        taken = self._chosen(self.model.waiting(), self.real.take_waiting(n), n)
        return self._agreed(self.model.announce(taken), taken)

    def take_stale(self, n: int) -> set[str]:
        taken = self._chosen(self.model.stale(), self.real.take_stale(n), n)
        return self._agreed(self.model.announce(taken), taken)

    def candidates(self, n: int, *, suspects: bool, older_than_s: int) -> set[str]:
        found = self.real.candidates(n, suspects=suspects, older_than_s=older_than_s)
        return self._chosen(self.model.claimable(suspects=suspects, older_than_s=older_than_s), found, n)

    def forget(self) -> None:
        self._agreed(self.model.forget(), self.real.forget())

    def advance(self, seconds: int) -> None:
        self.model.advance(seconds)
        self.real.advance(seconds)

    def rows(self) -> dict[str, Row]:
        return self.model.rows()

    def _chosen(self, allowed: set[str], taken: set[str], n: int) -> set[str]:
        assert taken <= allowed, taken - allowed
        assert len(taken) == min(n, len(allowed))
        return taken

    def _agreed(self, expected: T, found: T) -> T:
        assert found == expected
        ours = {job_id: facts(row) for job_id, row in self.model.rows().items()}
        theirs = {job_id: facts(row) for job_id, row in self.real.rows().items()}
        assert theirs == ours
        ends = {job_id: row.state for job_id, row in ours.items() if row.state.is_terminal}
        assert self.real.recorded_ends() == ends
        assert self.real.recorded_events() == sorted(ends.items())
        attempts = {(i, n): False for i, row in ours.items() for n in range(1, row.epoch + 1)}
        attempts |= {(i, row.epoch): True for i, row in ours.items() if row.state is JobState.RUNNING}
        assert self.real.attempts() == attempts
        dead = {job_id for job_id, row in ours.items() if row.code in ("poison", "max_attempts_exceeded")}
        assert self.real.dead_letters() == dead
        return expected
