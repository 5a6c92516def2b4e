"""The dispatcher runs the periodic duties that no request triggers: ``python -m workers.dispatcher``.

One process leads, a standby waits for a lock in Postgres. Each duty is a decision and one statement. It may safely run
twice, and its failure does not affect other duties: the failure is logged in one line, and the duty is retried at its
next turn. The dispatcher runs no model; the meaning of job states is ``store``'s.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from store import failpoints
from store.db.database import Database, check_schema
from store.db.leader_election import Leadership
from store.db.tls import check_transport
from store.errors import HeadraceError, SettingsError, Unavailable
from store.jobs import sweeps
from store.key_rotation.master_key_check import check_keys
from store.logs import configure_logging
from store.redis.celery_queue import Hint, HintPublisher, celery_app
from store.redis.connection import connect
from store.registry.models import shadow_name
from store.scheduling import dispatch_queries
from store.scheduling.dispatch_queries import QueueDepth, RoundRobin
from store.scheduling.fair_share import RecentMaximum, read_candidates, within_share
from store.scheduling.work_probe import PendingWork, probe
from store.settings import Settings, load_settings, open_vault, require_services
from store.stop_signals import on_stop_signals
from store.streams import stream_log
from store.streams.stream_log import StreamPublisher, forget_generation, start_generation
from store.webhooks.addresses import parse_networks
from workers.dispatcher.audit_heads import AuditHeads
from workers.dispatcher.queue_stats import QueueStats
from workers.dispatcher.retention import RetentionThread
from workers.health import HealthServer, LoopHeartbeat
from workers.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

LOOK_S = 0.1
IDLE_LOOK_S = 0.25
TOP_UP_S = 0.1
COUNT_S = 0.25
LEAD_S = 2.0
SWEEP_ROWS = 500
# The webhook sender is notified when deliveries are due; it polls as well, in case a notification is lost.
_SENDER_LOOKS_S = 1.0
# Duties that are due within this time run at once, so that the process wakes up once for all of them.
_TOGETHER_S = 0.05
_STOP_S = 0.5
# A duty may wait for Postgres. After this time it counts as hung, and a supervisor may restart the process.
_LONGEST_TURN_S = 60.0
_RETRY_S = 1.0
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


def num_of_batch(depth: QueueDepth, most_a_worker: int) -> int:
    """Return how many more jobs of the batch class may be announced.

    Batch jobs never use all slots of a worker and never queue up as hints, so a job of a better class finds room at
    once.
    """
    return max(0, most_a_worker * max(1, depth.num_workers) - depth.batch_under_way)


class OutageGrace:
    """Grace time after an outage of Postgres: a lease that expires because no worker could renew it is no crash.

    Times are of the monotonic clock. ``answered`` must be called often: a long time without a call looks like an
    outage.
    """

    def __init__(self, lease_s: float, sweep_s: float, now: float) -> None:
        # A worker renews every third of a lease, so a shorter outage than this costs no lease.
        self._longest_s = lease_s / 2 + sweep_s
        # A lease that was renewed just before the outage expires this much after it.
        self._grace_s = lease_s + 2 * sweep_s
        self._answered_at = now
        self._grace_until = now

    def answered(self, now: float) -> None:
        """Note that Postgres answered."""
        if now - self._answered_at > self._longest_s:
            self._grace_until = now + self._grace_s
        self._answered_at = now

    def refused(self, now: float) -> None:
        """Note that Postgres refused writes, as with a full disk: then no lease was renewed either."""
        self._grace_until = now + self._grace_s

    def blames(self, now: float) -> bool:
        """Return True if an expired lease is its worker's fault."""
        return now >= self._grace_until


@dataclass(slots=True)
class Duty:
    """A task that runs every ``period_s`` seconds if it is needed then, or at once after ``run`` has returned True.

    ``run`` does a batch and returns whether there may be more to do. The other duties run in between.
    """

    name: str
    period_s: float
    run: Callable[[], bool | None]
    is_needed: Callable[[], bool] = lambda: True
    due_at: float = 0.0
    is_failing: bool = False


class Dispatcher:
    """The duties and their loop. ``stop`` may be called from a signal handler or another thread."""

    def __init__(self, settings: Settings) -> None:
        # Checked here, although the sender uses it: a malformed setting must stop the process at its start.
        parse_networks(settings.webhook_allow_networks)
        self._settings = settings
        vault = open_vault(settings)
        self._db = Database(settings.database_url, application_name="headrace-dispatcher", vault=vault)
        self._redis = connect(settings.redis_url, timeout_s=2.0)
        self._hints = HintPublisher(celery_app(settings))
        self._streams = StreamPublisher(self._redis, maxlen=settings.stream_max_frames, ttl_s=settings.stream_ttl_s)
        self._round_robin = RoundRobin(settings.ageing_s)
        self._recent_running = RecentMaximum()
        # By queue: a queue is of one model version, and that has one task.
        self._tasks: dict[str, str] = {}
        self._most_batch = max(1, int(settings.max_slots * settings.batch_share))
        self._outage_grace = OutageGrace(settings.lease_s, settings.sweep_s, time.monotonic())
        self._stopping = threading.Event()
        self.heartbeat = LoopHeartbeat(_LONGEST_TURN_S)
        self._counter = QueueStats(self._db)
        self._due = PendingWork()
        self._sender: WebhookSender | None = None
        self._leadership: Leadership | None = None
        self._look = Duty("look", LOOK_S, self.look)
        self._duties = (
            Duty("check_lead", min(settings.sweep_s, LEAD_S), self._check_leadership),
            Duty("notice_wipe", min(settings.sweep_s, 1.0), self.notice_wipe),
            self._look,
            Duty("top_up", TOP_UP_S, self.top_up, lambda: self._due.jobs),
            Duty("count_queued", COUNT_S, self._counter.turn, lambda: self._due.changes or self._counter.has_news),
            Duty("sweep_leases", settings.sweep_s, self.sweep_leases),
            Duty("expire_deadlines", settings.sweep_s, self.expire_deadlines),
            Duty("tell_audit_heads", settings.audit_head_s, AuditHeads(self._db, settings.audit_head_key).log_heads),
        )

    def stop(self) -> None:
        """Make ``run`` return within about a second."""
        self._stopping.set()

    def run(self) -> None:
        """Lead, or wait to lead, until stopped. Raises SettingsError for a wrong encryption key."""
        while not self._stopping.is_set():
            self.heartbeat.beat()
            try:
                check_schema(self._db)
                check_keys(self._db, self._db.vault)
                self._outage_grace.answered(time.monotonic())
                with sweeps.leader_lock(self._db) as lead:
                    if lead:
                        self._lead(lead)
            except SettingsError:
                raise
            except HeadraceError as error:
                log.warning("dispatcher.not_leading", error=error.message)
            self._stopping.wait(self._settings.sweep_s)

    def close(self) -> None:
        """Drop the connections."""
        self._hints.close()
        self._redis.close()
        self._db.close()

    def _lead(self, lead: Leadership) -> None:
        """Run the duties until stopped, or until the leadership is lost or Postgres is away. Raises Unavailable."""
        log.info("dispatcher.leading")
        self._leadership = lead
        self._sender = sender = WebhookSender(self._db, self._settings, look_every_s=_SENDER_LOOKS_S)
        forgetting = RetentionThread(self._db, self._settings, partial(stream_log.forget, self._redis))
        sender.start()
        forgetting.start()
        try:
            while not self._stopping.is_set():
                next_due_at = self._run_due()
                self._stopping.wait(max(0.0, next_due_at - time.monotonic()))
        finally:
            self._sender = self._leadership = None
            forgetting.stop(_STOP_S)
            sender.stop(_STOP_S)
            log.info("dispatcher.stopped_leading")

    def _run_due(self) -> float:
        """Run each due duty once; return when the next one is due. Raises Unavailable if Postgres is away."""
        for duty in self._duties:
            self.heartbeat.beat()
            is_due = duty.due_at <= time.monotonic() + _TOGETHER_S and duty.is_needed()
            if is_due and not self._stopping.is_set():
                has_more = self._run_one(duty)
                pause_s = max(duty.period_s, _RETRY_S) if duty.is_failing else duty.period_s
                duty.due_at = time.monotonic() + (0.0 if has_more else pause_s)
        return min(duty.due_at for duty in self._duties if duty.is_needed())

    def _run_one(self, duty: Duty) -> bool:
        """Run a duty once; return whether it has more to do. Raises Unavailable if Postgres is away."""
        has_more = None
        try:
            has_more = duty.run()
        except Unavailable as error:
            # FilteredOutput once, not at every try of a long outage.
            if not duty.is_failing:
                log.warning("dispatcher.duty_failed", duty=duty.name, error=error.message)
            duty.is_failing = True
            if error.code == "database_unavailable":
                raise
        except Exception:
            # A defect in one duty must not stop the others.
            log.exception("dispatcher.duty_failed", duty=duty.name)
            duty.is_failing = True
        else:
            if duty.is_failing:
                log.info("dispatcher.duty_recovered", duty=duty.name)
            duty.is_failing = False
        return bool(has_more)

    def _check_leadership(self) -> None:
        """Raise Unavailable if the server has ended the connection with the lock: another process may lead now."""
        if self._leadership is not None:
            self._leadership.check()

    def look(self) -> None:
        """Ask Postgres which work is due: the only query while there is none."""
        # If the query fails, all duties run.
        self._due = PendingWork()
        self._due = due = probe(self._db)
        self._look.period_s = LOOK_S if due.jobs or due.deliveries else IDLE_LOOK_S
        if due.deliveries and self._sender is not None:
            self._sender.notify_due()

    def notice_wipe(self) -> None:
        """Announce all queued jobs again if Redis is new or was wiped."""
        if not start_generation(self._redis):
            return
        try:
            num_jobs = dispatch_queries.forget_announcements(self._db)
        except Unavailable:
            forget_generation(self._redis)
            raise
        log.info("dispatcher.redis_is_new", num_jobs=num_jobs)

    def top_up(self) -> None:
        """Fill the ready windows of the queues: first with lost hints, then with waiting jobs."""
        window = self._settings.ready_window
        for depth in dispatch_queries.waiting_queues(self._db, most=_WINDOWS_COUNTED * window):
            if depth.is_paused:
                continue
            in_redis = self._hints.depth(depth.queue)
            num_lost = num_to_repeat(depth, in_redis, window, self._settings.reannounce_s)
            if num_lost:
                jobs = dispatch_queries.take_stale(self._db, depth.queue, self._settings.reannounce_s, num_lost)
                self._announce(depth.queue, jobs, "dispatcher.announced_again")
                in_redis += len(jobs)
            if num_new := num_to_announce(depth, in_redis, window):
                most_batch = num_of_batch(depth, self._most_batch)
                jobs = dispatch_queries.take_waiting(
                    self._db, depth.queue, num_new, self._round_robin, most_batch=most_batch
                )
                ahead = self._fast_lane(jobs) if in_redis else frozenset()
                self._announce(depth.queue, jobs, "dispatcher.announced", ahead)

    def _fast_lane(self, job_ids: list[str]) -> Set[str]:
        """Return those jobs that may go ahead of the ready window."""
        entries = [
            entry for entry in read_candidates(self._db, job_ids) if entry.class_rank != dispatch_queries.BATCH_RANK
        ]
        return within_share(self._db, entries, self._recent_running, are_announced=True) if entries else frozenset()

    def _announce(self, queue: str, job_ids: list[str], event: str, ahead: Set[str] = frozenset()) -> None:
        """Publish hints for jobs that were just marked as announced. A hint that fails is announced again later."""
        if job_ids:
            model, _, version = queue.rpartition("@")
            if queue not in self._tasks:
                self._tasks[queue] = dispatch_queries.task_of(self._db, job_ids[0])
            shadow = shadow_name(self._tasks[queue], model, int(version))
            self._hints.publish([Hint(job_id, queue, shadow, job_id in ahead) for job_id in job_ids])
            log.debug(event, queue=queue, num_jobs=len(job_ids))

    def sweep_leases(self) -> bool:
        """Requeue jobs with expired leases, in batches; return whether there may be more."""
        # Before the sweep, so that an outage that ends now is noticed before its leases are swept.
        self._db.ping()
        self._outage_grace.answered(time.monotonic())
        blame = self._outage_grace.blames(time.monotonic())
        try:
            swept = sweeps.sweep_leases(self._db, SWEEP_ROWS, blame=blame)
        except Unavailable:
            self._outage_grace.refused(time.monotonic())
            raise
        if swept.requeued or swept.ended:
            counts = {"requeued": swept.requeued, "failed": swept.failed, "cancelled": swept.cancelled}
            log.info("dispatcher.leases_swept", blamed=blame, **counts)
        self._nudge(swept.ended)
        return swept.num_jobs >= SWEEP_ROWS

    def expire_deadlines(self) -> bool:
        """End jobs after their deadlines, in batches; return whether there may be more."""
        expired = sweeps.expire_overdue(self._db, SWEEP_ROWS, grace_s=2 * self._settings.lease_s)
        if expired:
            log.info("dispatcher.expired", num_jobs=len(expired))
        self._nudge(expired)
        return len(expired) >= SWEEP_ROWS

    def _nudge(self, job_ids: Iterable[str]) -> None:
        """End open streams of these jobs now, not at their next poll of Postgres."""
        if job_ids:
            self._streams.nudge(job_ids)


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = require_services(load_settings())
        configure_logging(settings.log_level)
        check_transport(settings)
        failpoints.install(settings.failpoints)
        dispatcher = Dispatcher(settings)
        # Only the loop is checked: a restart would not repair Postgres.
        health = HealthServer(
            settings.health_host, settings.dispatcher_port, CollectorRegistry(), {"loop": dispatcher.heartbeat.check}
        )
        health.start()
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"headrace dispatcher: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"headrace dispatcher: cannot listen on port {settings.dispatcher_port}: {error.strerror}\n")
        return 2

    on_stop_signals(dispatcher.stop)
    try:
        dispatcher.run()
    except SettingsError as error:
        sys.stderr.write(f"headrace dispatcher: {error}\n")
        return 2
    finally:
        health.stop()
        dispatcher.close()
    return 0
