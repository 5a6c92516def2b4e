"""The duty that fills the ready windows: it announces waiting jobs to Celery's queues in Redis, a window at a time."""

from collections.abc import Callable, Set

import structlog

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.redis.celery_queue import Hint, HintPublisher, celery_app
from headrace.store.registry.models import shadow_name
from headrace.store.scheduling import dispatch_queries
from headrace.store.scheduling.backlog import RecentMaximum, read_candidates, within_share
from headrace.store.scheduling.dispatch_queries import QueueDepth, RoundRobin
from headrace.store.settings import Settings

log = structlog.get_logger(__name__)

# A long backlog is counted only up to this many ready windows.
_WINDOWS_COUNTED = 4


def num_to_announce(depth: QueueDepth, in_redis: int, window: int) -> int:
    """Return how many waiting jobs the ready window has room for."""
    return max(0, min(depth.waiting, window - in_redis))


def num_to_repeat(depth: QueueDepth, in_redis: int, window: int, reannounce_s: float) -> int:
    """Return how many lost hints fit: announced long ago, not claimed and not in Redis.

    While Redis has as many hints as there are announced jobs, none was lost, however long they wait.
    """
    if depth.oldest_announced_s is None or depth.oldest_announced_s < reannounce_s:
        return 0
    return max(0, min(depth.announced - in_redis, window - in_redis))


def num_of_batch(depth: QueueDepth, share: float) -> int | None:
    """Return how many more jobs of the batch class may be announced: they use at most ``share`` of the slots.

    They never use all slots of a worker and never queue up as hints, so a better job finds room at once. With
    a share of 1 nothing is kept free: None, they fill the window, or slots would stand empty between two turns.
    """
    if share >= 1:
        return None
    return max(0, max(1, int(depth.num_slots * share)) - depth.batch_under_way)


class ReadyWindow:
    """Keeps up to ``ready_window`` hints in each queue.

    ``start_generation`` returns True if Redis is new or was wiped; ``forget_generation`` makes it do so again.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        start_generation: Callable[[], bool],
        forget_generation: Callable[[], None],
    ) -> None:
        self._db = db
        self._start_generation = start_generation
        self._forget_generation = forget_generation
        self._hints = HintPublisher(celery_app(settings))
        self._window = settings.ready_window
        self._reannounce_s = settings.reannounce_s
        self._batch_share = settings.batch_share
        # Of a worker that does not say it: one of an earlier release, or one that is still to start.
        self._usual_slots = settings.max_slots
        self._round_robin = RoundRobin(settings.ageing_s)
        self._recent_running = RecentMaximum()
        # By queue: a queue is of one model version, and that has one task.
        self._tasks: dict[str, str] = {}

    def close(self) -> None:
        """Close the connection to the queues."""
        self._hints.close()

    def notice_wipe(self) -> None:
        """Announce all queued jobs again if Redis is new or was wiped."""
        if not self._start_generation():
            return
        try:
            num_jobs = dispatch_queries.forget_announcements(self._db)
        except Unavailable:
            self._forget_generation()
            raise
        log.info("dispatcher.redis_is_new", num_jobs=num_jobs)

    def top_up(self) -> None:
        """Fill the ready windows of the queues: first with lost hints, then with waiting jobs."""
        window = self._window
        for depth in dispatch_queries.waiting_queues(
            self._db, most=_WINDOWS_COUNTED * window, usual_slots=self._usual_slots
        ):
            if depth.is_paused:
                continue
            in_redis = self._hints.depth(depth.queue)
            num_lost = num_to_repeat(depth, in_redis, window, self._reannounce_s)
            if num_lost:
                jobs = dispatch_queries.take_stale(self._db, depth.queue, self._reannounce_s, num_lost)
                self._announce(depth.queue, jobs, again=True)
                in_redis += len(jobs)
            if num_new := num_to_announce(depth, in_redis, window):
                most_batch = num_of_batch(depth, self._batch_share)
                jobs = dispatch_queries.take_waiting(
                    self._db, depth.queue, num_new, self._round_robin, most_batch=most_batch
                )
                ahead = self._fast_lane(jobs) if in_redis else frozenset()
                self._announce(depth.queue, jobs, ahead)

    def _fast_lane(self, job_ids: list[str]) -> Set[str]:
        """Return those jobs that may go ahead of the ready window."""
        entries = [
            entry for entry in read_candidates(self._db, job_ids) if entry.class_rank != dispatch_queries.BATCH_RANK
        ]
        return within_share(self._db, entries, self._recent_running, are_announced=True) if entries else frozenset()

    def _announce(self, queue: str, job_ids: list[str], ahead: Set[str] = frozenset(), *, again: bool = False) -> None:
        """Publish hints for jobs that were just marked as announced. A hint that fails is announced again later."""
        if job_ids:
            model, _, version = queue.rpartition("@")
            if queue not in self._tasks:
                self._tasks[queue] = dispatch_queries.task_of(self._db, job_ids[0])
            shadow = shadow_name(self._tasks[queue], model, int(version))
            self._hints.publish([Hint(job_id, queue, shadow, job_id in ahead) for job_id in job_ids])
            log.debug("dispatcher.announced", queue=queue, num_jobs=len(job_ids), again=again)
