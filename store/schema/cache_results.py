"""What the response cache did for a job, as ``jobs.cache`` has it, and the queue of jobs that wait for other jobs."""

from enum import StrEnum
from typing import Final

UNSERVED_QUEUE: Final = "cache"
"""The queue of jobs that wait for other jobs: sharers, flows, and steps that wait for other steps. No worker serves it,
and no version has this name: those have an ``@``. Releases before flows had only sharers in it, hence its value."""


class CacheResult(StrEnum):
    """How a job gets its answer; null in ``jobs.cache``: the cache had no part in it."""

    MISS = "miss"  # it is computed, and may become the source of others
    SHARED = "shared"  # from a source that had not ended when the job was accepted
    HIT = "hit"  # from a source that had ended
