"""The evidence that is stored with a rollout: the counts of the pairs, the last verdict, and a bounded history."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from headrace.features.rollouts.evidence import Evidence
from headrace.features.rollouts.judge import Verdict
from headrace.features.rollouts.rollouts import Rollout

MAX_ENTRIES: Final = 240
"""When the history is full, every second entry is dropped: it stays as long as the rollout, and gets coarser."""


def with_verdict(
    rollout: Rollout,
    evidence: Evidence,
    verdict: Verdict,
    now: datetime,
    *,
    waits_for: str | None = None,
    job_percent: float | None = None,
) -> dict[str, Any]:
    """Return the evidence to store: ``at``, ``summary``, ``is_bad``, ``checks``, ``history`` and ``counts``.

    ``waits_for``: what the step still waits for. ``job_percent``: the candidate's share of the step's newest jobs.

    An entry of the history has ``at``, ``percent``, ``log_e`` by check, and the summary.
    """
    summary: Mapping[str, object] = evidence.summary()
    history = [*rollout.evidence.get("history", ())]
    if len(history) >= MAX_ENTRIES:
        history = history[::2]
    at = int(now.timestamp())
    checks = [check.as_json() for check in verdict.checks]
    log_e = {check.name: round(check.log_e, 2) for check in verdict.checks}
    history.append({"at": at, "percent": rollout.percent, "log_e": log_e, **summary})
    return {
        "at": at,
        "is_bad": verdict.is_bad,
        "waits_for": waits_for,
        "job_percent": job_percent,
        "summary": dict(summary),
        "checks": checks,
        "history": history,
        "counts": evidence.as_json(),
    }
