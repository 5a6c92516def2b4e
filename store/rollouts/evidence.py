"""What Postgres knows of a rollout's jobs, of both versions. This first form counts ended jobs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from store.rollouts.rollouts import Rollout

_ENDED = text("""
SELECT model_version, count(*) AS num_ended, count(*) FILTER (WHERE state = 'failed') AS num_failed FROM jobs
WHERE rollout_id = :rollout AND completed_at IS NOT NULL AND model_version = ANY(CAST(:versions AS int[]))
GROUP BY model_version
""")


@dataclass(frozen=True, slots=True)
class VersionEvidence:
    """The ended jobs of one version in the rollout."""

    num_ended: int = 0
    num_failed: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence on both versions, since the rollout began."""

    stable: VersionEvidence = field(default_factory=VersionEvidence)
    candidate: VersionEvidence = field(default_factory=VersionEvidence)

    def summary(self) -> Mapping[str, object]:
        """Return the counts as JSON values, for the history of the rollout."""
        sides = {"stable": self.stable, "candidate": self.candidate}
        return {name: {"ended": side.num_ended, "failed": side.num_failed} for name, side in sides.items()}


def read_evidence(connection: Connection, rollout: Rollout) -> Evidence:
    """Return what the jobs of the rollout show. ``connection`` may read jobs of all tenants."""
    values = {"rollout": rollout.id, "versions": [rollout.stable_version, rollout.candidate_version]}
    found = {
        row.model_version: VersionEvidence(row.num_ended, row.num_failed) for row in connection.execute(_ENDED, values)
    }
    empty = VersionEvidence()
    return Evidence(found.get(rollout.stable_version, empty), found.get(rollout.candidate_version, empty))
