"""The duty that takes rollouts forward: it asks the judge, goes to the next step, promotes, or rolls back.

After a rollout was rolled back or aborted it moves the queued jobs of the candidate to the stable version, a bounded
number in each transaction. All of it is in Postgres, so another dispatcher goes on where this one was killed.
"""

import time
from collections.abc import Callable, Collection
from functools import partial

import structlog
from pydantic import ValidationError

from headrace.features.rollouts import changes, moves, shadow
from headrace.features.rollouts.evidence import Evidence, read_evidence
from headrace.features.rollouts.history import with_verdict
from headrace.features.rollouts.judge import Bounds, Verdict, judge
from headrace.features.rollouts.metrics import Judgement, RolloutMetrics
from headrace.features.rollouts.progress import Progress, read_job_percent, read_progress
from headrace.features.rollouts.rollouts import Rollout, RolloutKind, RolloutMode, RolloutState, rollouts_under_way
from headrace.features.rollouts.transitions import Transition, next_transition, overdue_s, waits_for
from headrace.store.db.database import Database
from headrace.store.errors import RequestError
from headrace.store.keeper import run_parts

log = structlog.get_logger(__name__)

MOVED_ROWS = 200
"""The most jobs that one transaction moves."""

NOTE_S = 60.0
"""The evidence is stored this often, and whenever it counts new jobs."""

_ACTOR = "dispatcher"


class RolloutKeeper:
    """The duty. A turn may be repeated, and two dispatchers may run one at the same time.

    ``shadow_tenant`` and ``shadow_sources``: as in ``Settings``.
    """

    def __init__(
        self,
        db: Database,
        metrics: RolloutMetrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        shadow_tenant: str = "",
        shadow_sources: Collection[str] = (),
    ) -> None:
        self._db = db
        self._metrics = metrics
        self._clock = clock
        self._shadow_tenant = shadow_tenant
        self._shadow_sources = shadow_sources
        # By rollout: when its evidence was stored.
        self._noted_at: dict[str, float] = {}

    def turn(self) -> bool:
        """Do what is due; return whether there may be more to do at once."""
        found = rollouts_under_way(self._db)
        active = [rollout for rollout in found if rollout.state.is_active]
        self._metrics.show_rollouts(active)
        self._noted_at = {rollout.id: self._noted_at.get(rollout.id, float("-inf")) for rollout in active}
        judged: list[Judgement] = []
        # Every ended rollout gets its share of each turn.
        ended_first = sorted(found, key=lambda rollout: rollout.state.is_active)
        try:
            return run_parts((rollout.id, partial(self._advance, rollout, judged)) for rollout in ended_first)
        finally:
            self._metrics.show_judgements(judged)

    def _advance(self, rollout: Rollout, judged: list[Judgement]) -> bool:
        """Do what is due for one rollout; return whether there may be more."""
        if not rollout.state.is_active:
            return self._move(rollout)
        if (judgement := self._judge(rollout)) is not None:
            judged.append(judgement)
        return False

    def _move(self, rollout: Rollout) -> bool:
        if rollout.mode is RolloutMode.SHADOW or rollout.kind is RolloutKind.PIPELINE:
            # The candidate of a shadow has no caller's job: the mirrors that wait run there, or expire. A job of a
            # pipeline keeps its steps: of another version it would be another job.
            return False
        num_moved = moves.move_queued(self._db, rollout, MOVED_ROWS)
        if num_moved:
            self._metrics.jobs_moved.inc(num_moved)
            log.info("rollout.jobs_moved", rollout=rollout.id, num_jobs=num_moved)
        return num_moved >= MOVED_ROWS

    def _judge(self, rollout: Rollout) -> Judgement | None:
        """Take the rollout forward; return how it stands if it runs and stays in its step."""
        try:
            return self._judge_by_bounds(rollout)
        except ValidationError as error:
            # Another release has stored bounds that this one does not know. The other rollouts must still be judged.
            wrong = sorted({".".join(map(str, one["loc"])) for one in error.errors(include_input=False)})
            log.error("rollout.bounds_unreadable", rollout=rollout.id, bounds=wrong)
            return None

    def _judge_by_bounds(self, rollout: Rollout) -> Judgement | None:
        evidence = self._read_evidence(rollout)
        with self._db.autocommit() as connection:
            progress = read_progress(connection, rollout)
        verdict = judge(evidence, Bounds.model_validate(rollout.bounds))
        transition = next_transition(rollout, progress, verdict)
        counts = evidence.as_json()
        waiting = waits_for(rollout, progress, verdict)
        has_news = (
            transition is not None
            or counts != rollout.evidence.get("counts")
            or waiting != rollout.evidence.get("waits_for")
        )
        if has_news or self._clock() >= self._noted_at[rollout.id] + NOTE_S:
            self._noted_at[rollout.id] = self._clock()
            with self._db.autocommit() as connection:
                job_percent = read_job_percent(connection, rollout)
            noted = with_verdict(rollout, evidence, verdict, progress.now, waits_for=waiting, job_percent=job_percent)
            changes.note_evidence(self._db, rollout, noted)
        if transition is None:
            return _judgement(rollout, progress, verdict) if rollout.state is RolloutState.RUNNING else None
        try:
            self._change(rollout, transition)
        except RequestError as error:
            # Changed by a person just now, or the candidate cannot be promoted any more: the next turn reads it again.
            log.warning("rollout.not_changed", rollout=rollout.id, action=transition.action.value, error=error.message)
        return None

    def _change(self, rollout: Rollout, transition: Transition) -> None:
        """Carry an action out."""
        changes.change(self._db, rollout.id, transition, _ACTOR, expected=rollout.revision)
        self._metrics.transitions.labels(transition.action.value).inc()

    def _read_evidence(self, rollout: Rollout) -> Evidence:
        if rollout.mode is RolloutMode.SHADOW:
            return shadow.look(self._db, rollout, self._shadow_tenant, self._shadow_sources)
        with self._db.autocommit() as connection:
            return read_evidence(connection, rollout)


def _judgement(rollout: Rollout, progress: Progress, verdict: Verdict) -> Judgement:
    num_undecided = sum(check.decision == "undecided" for check in verdict.checks)
    return Judgement(rollout.model, rollout.alias, overdue_s(rollout, progress), num_undecided)
