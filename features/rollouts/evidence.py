"""The evidence of a rollout: what the pairs of its jobs have shown so far, as counts of bounded size.

The jobs of a window of acceptance are read once, when all of them have ended or ``Bounds.settle_s`` have passed. Slow
jobs are so as likely in a window as quick ones, on both sides, however the percentage changes. The counts and the end
of the last window are stored in the rollout's row, so each look reads few rows, and a repeated look counts none twice.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection, RowMapping, TextClause, text

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.matched_pairs import MEASURES, JobOutcome, JobPair, PairedJobs, bound_of, pair_up
from headrace.features.rollouts.rollouts import Rollout, RolloutKind
from headrace.features.rollouts.sequential_test import GroupSums
from headrace.store.schema.job_states import JobState

WINDOW_S = 30.0
"""Seconds of acceptances that are read together."""

_LONGEST_WINDOW_S = 900.0
# Rows that are not committed yet when the window is read would be missed.
_COMMIT_S = 2.0
_MOST_CANDIDATES = 500
_MOST_STABLE = 1500

OUTCOME = """tenant_id, class_rank, input_tokens, state, epoch, error ->> 'code' AS code, usage, started_at,
    completed_at, pipeline_version"""
"""The columns of ``jobs`` that ``outcome_of`` reads."""

_NOW = text("SELECT now()")

# One version's jobs of a window, the oldest first. Of a window with very many jobs the first ones are a sample. A job
# that gets the answer of another one says nothing new.
_JOBS = f"""
SELECT {OUTCOME}, created_at
FROM jobs
WHERE rollout_id = :rollout AND {{column}} = :version AND created_at > :after AND created_at <= :until
    AND cache_source IS NULL
ORDER BY created_at LIMIT {{most}}
"""
_CANDIDATES = {kind: text(_JOBS.format(column=kind.column, most=_MOST_CANDIDATES)) for kind in RolloutKind}
_STABLE = {kind: text(_JOBS.format(column=kind.column, most=_MOST_STABLE)) for kind in RolloutKind}


@dataclass(slots=True)
class SideSums:
    """One version's jobs in pairs: their number, and the sum of a measure (of its logarithm, if it is no share)."""

    num: int = 0
    total: float = 0.0

    def add(self, value: float, *, is_share: bool) -> None:
        """Count a job."""
        self.num += 1
        self.total += value if is_share else math.log(max(value, 1e-9))

    def usual(self, *, is_share: bool) -> float | None:
        """Return the share, or the geometric mean of another quantity; None without a job."""
        if not self.num:
            return None
        return self.total / self.num if is_share else math.exp(self.total / self.num)


@dataclass(slots=True)
class MeasureEvidence:
    """What the pairs show of one measure: how often each value was seen, and the spread of tenants by placebo pairs."""

    own: Counter[float] = field(default_factory=Counter)
    foreign: Counter[float] = field(default_factory=Counter)
    placebo: dict[int, GroupSums] = field(default_factory=dict)
    candidate: SideSums = field(default_factory=SideSums)
    stable: SideSums = field(default_factory=SideSums)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "own": [[value, count] for value, count in self.own.items()],
            "foreign": [[value, count] for value, count in self.foreign.items()],
            "placebo": [[cell, one.num, one.total, one.squares] for cell, one in self.placebo.items()],
            "candidate": [self.candidate.num, self.candidate.total],
            "stable": [self.stable.num, self.stable.total],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read the result of ``as_json``."""
        return cls(
            own=Counter({float(value): count for value, count in stored["own"]}),
            foreign=Counter({float(value): count for value, count in stored["foreign"]}),
            placebo={cell: GroupSums(num, total, squares) for cell, num, total, squares in stored["placebo"]},
            candidate=SideSums(*stored["candidate"]),
            stable=SideSums(*stored["stable"]),
        )


@dataclass(slots=True)
class Evidence:
    """The evidence up to ``read_until``: an acceptance time, in shadow mode the time of an end.

    ``mirrored_until``: in shadow mode, the end of the last stable job that was considered for a mirror. ``*_cells``:
    the tenants of the foreign pairs.
    """

    read_until: datetime | None = None
    mirrored_until: datetime | None = None
    num_candidate: int = 0
    num_stable: int = 0
    candidate_cells: Counter[int] = field(default_factory=Counter)
    stable_cells: Counter[int] = field(default_factory=Counter)
    measures: dict[str, MeasureEvidence] = field(default_factory=lambda: {name: MeasureEvidence() for name in MEASURES})

    def add(self, pairs: PairedJobs, bounds: Bounds) -> None:
        """Count the pairs of a window."""
        self.candidate_cells.update(pair.candidate.cell for pair in pairs.foreign)
        self.stable_cells.update(pair.stable.cell for pair in pairs.foreign)
        for name, found in self.measures.items():
            bound = bound_of(bounds, name)
            _add_values(name, pairs.own, bound, found, found.own)
            _add_values(name, pairs.foreign, bound, found, found.foreign)
            for one in (turned for pair in pairs.placebo for turned in (pair, JobPair(pair.stable, pair.candidate))):
                value = MEASURES[name].compare(one, bound)
                if value is not None:
                    cell = one.candidate.cell
                    found.placebo[cell] = found.placebo.get(cell, GroupSums()).with_value(value)

    def summary(self) -> dict[str, object]:
        """Return the numbers of jobs as JSON values, for the history of the rollout."""
        return {"num_candidate": self.num_candidate, "num_stable": self.num_stable}

    def as_json(self) -> dict[str, Any]:
        """Return the evidence as JSON values, for the next look."""
        return {
            "read_until": self.read_until and self.read_until.isoformat(),
            "mirrored_until": self.mirrored_until and self.mirrored_until.isoformat(),
            "num_candidate": self.num_candidate,
            "num_stable": self.num_stable,
            "candidate_cells": [list(one) for one in self.candidate_cells.items()],
            "stable_cells": [list(one) for one in self.stable_cells.items()],
            "measures": {name: one.as_json() for name, one in self.measures.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Self:
        """Read the result of ``as_json``; None or an empty mapping is no evidence."""
        if not stored:
            return cls()
        evidence = cls(
            read_until=_time(stored["read_until"]),
            mirrored_until=_time(stored.get("mirrored_until")),
            num_candidate=stored["num_candidate"],
            num_stable=stored["num_stable"],
            candidate_cells=Counter(dict(stored["candidate_cells"])),
            stable_cells=Counter(dict(stored["stable_cells"])),
        )
        known = {name: one for name, one in stored["measures"].items() if name in MEASURES}
        evidence.measures.update({name: MeasureEvidence.from_json(one) for name, one in known.items()})
        return evidence


def _time(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored)


def _add_values(
    name: str, pairs: Iterable[JobPair], bound: float, found: MeasureEvidence, tally: Counter[float]
) -> None:
    measure = MEASURES[name]
    for pair in pairs:
        candidate, stable = measure.read(pair.candidate), measure.read(pair.stable)
        value = measure.compare(pair, bound)
        if candidate is not None and stable is not None and value is not None:
            tally[value] += 1
            found.candidate.add(candidate, is_share=measure.is_share)
            found.stable.add(stable, is_share=measure.is_share)


@dataclass(frozen=True, slots=True)
class _Window:
    """The jobs that were accepted up to ``until`` and not read yet, of each side."""

    until: datetime
    candidate: Sequence[RowMapping] = ()
    stable: Sequence[RowMapping] = ()

    @property
    def has_ended(self) -> bool:
        return all(row["completed_at"] is not None for row in (*self.candidate, *self.stable))


def read_evidence(connection: Connection, rollout: Rollout) -> Evidence:
    """Return the evidence with the next window of jobs, if there is one to read.

    The evidence before is ``rollout.evidence["counts"]``: the ``as_json`` of the last look. ``connection`` may read
    jobs of all tenants.
    """
    evidence = Evidence.from_json(rollout.evidence.get("counts"))
    bounds = Bounds.model_validate(rollout.bounds)
    now = connection.execute(_NOW).scalar_one()
    window = _next_window(connection, rollout, evidence.read_until or rollout.started_at, now)
    has_settled = window is not None and window.until + timedelta(seconds=bounds.settle_s) <= now
    if window is None or not (window.has_ended or has_settled):
        return evidence
    evidence.read_until = window.until
    evidence.num_candidate += len(window.candidate)
    evidence.num_stable += len(window.stable)
    sides = ([outcome_of(row) for row in side] for side in (window.candidate, window.stable))
    evidence.add(pair_up(*sides), bounds)
    return evidence


def _next_window(connection: Connection, rollout: Rollout, after: datetime, now: datetime) -> _Window | None:
    """Return the next window; None if it is not over yet. It ends WINDOW_S after its first job of the candidate."""
    longest = after + timedelta(seconds=_LONGEST_WINDOW_S)
    horizon = min(now - timedelta(seconds=_COMMIT_S), longest)
    values = {"rollout": rollout.id, "after": after}
    candidate = _rows(
        connection, _CANDIDATES[rollout.kind], {**values, "version": rollout.candidate_version, "until": horizon}
    )
    if not candidate:
        return _Window(longest) if horizon == longest else None
    until = candidate[0]["created_at"] + timedelta(seconds=WINDOW_S)
    if until > horizon:
        return None
    stable = _rows(connection, _STABLE[rollout.kind], {**values, "version": rollout.stable_version, "until": until})
    return _Window(until, [row for row in candidate if row["created_at"] <= until], stable)


def _rows(connection: Connection, statement: TextClause, values: Mapping[str, object]) -> Sequence[RowMapping]:
    return connection.execute(statement, values).mappings().all()


def outcome_of(row: RowMapping, *, disagreement: float | None = None, has_times: bool = True) -> JobOutcome:
    """Return the outcome of a row of ``jobs``. ``has_times`` false leaves its times out.

    So are those of a job with several attempts: its last one did only a part of the work.
    """
    usage = row["usage"] or {}
    has_times = has_times and row["epoch"] == 1
    started_ms, first_ms = usage.get("queue_ms"), usage.get("first_token_ms")
    if first_ms is not None and started_ms is not None:
        first_ms -= started_ms
    return JobOutcome(
        tenant_id=row["tenant_id"],
        class_rank=row["class_rank"],
        input_tokens=row["input_tokens"],
        has_ended=row["completed_at"] is not None,
        has_succeeded=row["state"] == JobState.SUCCEEDED,
        error_code=row["code"],
        first_token_s=_seconds(first_ms) if has_times else None,
        token_s=_token_s(row, first_ms, usage) if has_times else None,
        output_tokens=usage.get("output_tokens"),
        disagreement=disagreement,
    )


def _token_s(row: RowMapping, first_ms: float | None, usage: Mapping[str, Any]) -> float | None:
    """Return the seconds of one output token after the first; of an encoder, of one input token; of a pipeline, of all.

    The steps of a pipeline may run side by side, so only the time from its start to its end is that of a caller.
    """
    if row["pipeline_version"] is not None:
        if row["started_at"] is None or row["completed_at"] is None:
            return None
        return float((row["completed_at"] - row["started_at"]).total_seconds())
    compute_ms, num_output = usage.get("compute_ms"), usage.get("output_tokens", 0)
    if compute_ms is None:
        return None
    if num_output == 0:
        return _seconds(compute_ms / max(1, usage.get("input_tokens", 1)))
    return _seconds((compute_ms - first_ms) / (num_output - 1)) if first_ms is not None and num_output > 1 else None


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1000 if milliseconds is not None and milliseconds > 0 else None
