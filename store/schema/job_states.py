"""The life of a job: its states and the only transitions between them.

Every state write in ``store`` is a conditional UPDATE that names the state it leaves; the ``job_terminal`` table's
primary key makes a second terminal state impossible even for a mistaken statement.

    queued ──claim──▶ running ──finish──▶ succeeded | failed | cancelled | expired
      ▲                  │
      └── release, sweep ┘          queued ──cancel──▶ cancelled     queued ──deadline──▶ expired
                                       queued ──answer of another job──▶ succeeded | failed

A job of several steps is queued until its first step begins, running until its last one has ended
(``features.flows.store.settling``).
"""

from enum import StrEnum
from typing import Final

FLOW_TASK: Final = "flow"
"""The task of a job of several steps, which are jobs themselves. No worker claims such a job."""

UNSERVED_QUEUE: Final = "cache"
"""The queue of jobs that wait: for other jobs (sharers, flows, and steps that need other steps), or for their
``start_after``. No worker serves it, and no version has this name: those have an ``@``. Releases before flows had only
sharers in it, hence its value."""


class CacheResult(StrEnum):
    """How a job gets its answer, as in ``jobs.cache``; null: the response cache had no part in it."""

    MISS = "miss"  # it is computed, and may become the source of others
    SHARED = "shared"  # from a source that had not ended when the job was accepted
    HIT = "hit"  # from a source that had ended


class JobState(StrEnum):
    """The state of a job. The last four are terminal: a job reaches exactly one of them."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """True if the job has ended."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    # A queued job fails without running when its attempts are used up or its payload cannot be read any more; with the
    # answer of another job (``features.response_cache.sharers``) it succeeds without running.
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}
