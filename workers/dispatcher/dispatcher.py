"""The dispatcher: what must happen although nobody asks for it. ``python -m workers.dispatcher``

One process leads, a standby waits on a lock in Postgres. Each duty is a decision plus one statement, safe to run
twice, and fails alone: it is logged in one line and tried again at its next turn. It never runs a model and never
decides what a job's state means; that is ``store``'s.
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
from store.scheduling.dispatch_queries import QueueDepth, Rota
from store.scheduling.fair_share import Lately, read_entries, within_share
from store.scheduling.work_probe import Due, look
from store.settings import Settings, load_settings, open_vault, require_services
from store.stop_signals import on_stop_signals
from store.streams import stream_log
from store.streams.stream_log import StreamPublisher, forget_generation, redis_generation
from store.webhooks.addresses import parse_networks
from workers.dispatcher.audit_heads import AuditHeads
from workers.dispatcher.queue_stats import QueueStats
from workers.dispatcher.retention import RetentionThread
from workers.health import HealthServer, Pulse
from workers.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

LOOK_S = 0.1
IDLE_LOOK_S = 0.25
TOP_UP_S = 0.1
COUNT_S = 0.25
LEAD_S = 2.0
SWEEP_ROWS = 500
# The sender of webhooks is told of what is due; it looks for itself in case that this is wrong.
_SENDER_LOOKS_S = 1.0
# What is due within this time is done at once, so that the process wakes up once for all of it.
_TOGETHER_S = 0.05
_STOP_S = 0.5
# A duty may wait for Postgres; one that takes longer than this hangs, and whoever watches may start the process anew.
_LONGEST_TURN_S = 60.0
_RETRY_S = 1.0
# A long backlog is not counted to its end ten times a second.
_WINDOWS_COUNTED = 4


def num_to_announce(depth: QueueDepth, in_redis: int, window: int) -> int:
    """Return how many waiting jobs the ready window has room for."""
    return max(0, min(depth.waiting, window - in_redis))


def num_to_repeat(depth: QueueDepth, in_redis: int, window: int, reannounce_s: float) -> int:
    """Return how many hints were lost and have room: announced long ago, in no worker's hands and not in Redis.

    While Redis holds as many hints as there are announced jobs nothing was lost, however long they wait.
    """
    if depth.oldest_announced_s is None or depth.oldest_announced_s < reannounce_s:
        return 0
    return max(0, min(depth.announced - in_redis, window - in_redis))


def num_of_batch(depth: QueueDepth, most_a_worker: int) -> int:
    """Return how many jobs of the batch class may join those that are announced or run.

    They never have all the places of a worker, nor a line of hints before it: who comes with a better class finds
    room at once.
    """
    return max(0, most_a_worker * max(1, depth.num_workers) - depth.batch_under_way)


class LeaseAmnesty:
    """Whether Postgres was to be heard of lately. While it is not, no worker can renew: a lost lease then says nothing.

    Times are the monotonic clock's. To be told often, for it cannot tell a silence from not having asked.
    """

    def __init__(self, lease_s: float, sweep_s: float, now: float) -> None:
        # A worker renews every third of a lease, so a shorter silence than this costs nobody a lease.
        self._longest_s = lease_s / 2 + sweep_s
        # Leases that were renewed at the last moment, by workers that had given up already, run out this much later.
        self._pardon_s = lease_s + 2 * sweep_s
        self._heard_at = now
        self._pardoned_until = now

    def heard(self, now: float) -> None:
        """Note that Postgres answered."""
        if now - self._heard_at > self._longest_s:
            self._pardoned_until = now + self._pardon_s
        self._heard_at = now

    def refused(self, now: float) -> None:
        """Note that Postgres answered and would not write, its disk being full: no lease was renewed then either."""
        self._pardoned_until = now + self._pardon_s

    def blames(self, now: float) -> bool:
        """True if a lease that has run out is its worker's fault."""
        return now >= self._pardoned_until


@dataclass(slots=True)
class Duty:
    """Something to do every ``period_s`` seconds if it is needed then, or at once after ``run`` has returned True.

    ``run`` does a bounded piece and returns whether there may be more to do: the other duties have their turn between.
    """

    name: str
    period_s: float
    run: Callable[[], bool | None]
    is_needed: Callable[[], bool] = lambda: True
    due_at: float = 0.0
    is_failing: bool = False


class Dispatcher:
    """The duties and the loop that runs them. ``stop`` may be called from a signal handler or another thread."""

    def __init__(self, settings: Settings) -> None:
        # Read here although the sender uses it: a malformed one must stop the process, not each attempt to lead.
        parse_networks(settings.webhook_allow_networks)
        self._settings = settings
        vault = open_vault(settings)
        self._db = Database(settings.database_url, application_name="headrace-dispatcher", vault=vault)
        self._redis = connect(settings.redis_url, timeout_s=2.0)
        self._hints = HintPublisher(celery_app(settings))
        self._streams = StreamPublisher(self._redis, maxlen=settings.stream_max_frames, ttl_s=settings.stream_ttl_s)
        self._rota = Rota(settings.ageing_s)
        self._lately = Lately()
        # A queue is of one model version, which has one task.
        self._tasks: dict[str, str] = {}
        self._most_batch = max(1, int(settings.max_slots * settings.batch_share))
        self._hearing = LeaseAmnesty(settings.lease_s, settings.sweep_s, time.monotonic())
        self._stopping = threading.Event()
        self.pulse = Pulse(_LONGEST_TURN_S)
        self._counter = QueueStats(self._db)
        self._due = Due()
        self._sender: WebhookSender | None = None
        self._lead_held: Leadership | None = None
        self._look = Duty("look", LOOK_S, self.look)
        self._duties = (
            Duty("check_lead", min(settings.sweep_s, LEAD_S), self._check_lead),
            Duty("notice_wipe", min(settings.sweep_s, 1.0), self.notice_wipe),
            self._look,
            Duty("top_up", TOP_UP_S, self.top_up, lambda: self._due.jobs),
            Duty("count_queued", COUNT_S, self._counter.turn, lambda: self._due.changes or self._counter.has_news),
            Duty("sweep_leases", settings.sweep_s, self.sweep_leases),
            Duty("expire_deadlines", settings.sweep_s, self.expire_deadlines),
            Duty("tell_audit_heads", settings.audit_head_s, AuditHeads(self._db, settings.audit_head_key).tell),
        )

    def stop(self) -> None:
        """Make ``run`` return within about a second."""
        self._stopping.set()

    def run(self) -> None:
        """Lead, or wait to lead, until stopped. Raises SettingsError for a wrong encryption key."""
        while not self._stopping.is_set():
            self.pulse.beat()
            try:
                check_schema(self._db)
                check_keys(self._db, self._db.vault)
                self._hearing.heard(time.monotonic())
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
        """Run the duties until stopped, or until the lead was lost or Postgres was away. Raises Unavailable."""
        log.info("dispatcher.leading")
        self._lead_held = lead
        self._sender = sender = WebhookSender(self._db, self._settings, look_every_s=_SENDER_LOOKS_S)
        forgetting = RetentionThread(self._db, self._settings, partial(stream_log.forget, self._redis))
        sender.start()
        forgetting.start()
        try:
            while not self._stopping.is_set():
                next_due_at = self._run_due()
                self._stopping.wait(max(0.0, next_due_at - time.monotonic()))
        finally:
            self._sender = self._lead_held = None
            forgetting.stop(_STOP_S)
            sender.stop(_STOP_S)
            log.info("dispatcher.stopped_leading")

    def _run_due(self) -> float:
        """Run each duty that is due once; return when the next one is. Raises Unavailable if Postgres is away."""
        for duty in self._duties:
            self.pulse.beat()
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
            # A defect in one duty must not take the others with it.
            log.exception("dispatcher.duty_failed", duty=duty.name)
            duty.is_failing = True
        else:
            if duty.is_failing:
                log.info("dispatcher.duty_recovered", duty=duty.name)
            duty.is_failing = False
        return bool(has_more)

    def _check_lead(self) -> None:
        """Stop leading, by an error, once another may lead: the server ended the connection with the lock."""
        if self._lead_held is not None:
            self._lead_held.check()

    def look(self) -> None:
        """Find out what there is to do; that is all which is asked of Postgres while there is nothing."""
        # If that fails, each duty finds out for itself.
        self._due = Due()
        self._due = due = look(self._db)
        self._look.period_s = LOOK_S if due.jobs or due.deliveries else IDLE_LOOK_S
        if due.deliveries and self._sender is not None:
            self._sender.tell_due()

    def notice_wipe(self) -> None:
        """Let every queued job be announced again if Redis is new or was wiped."""
        if not redis_generation(self._redis):
            return
        try:
            num_jobs = dispatch_queries.forget_announcements(self._db)
        except Unavailable:
            forget_generation(self._redis)
            raise
        log.info("dispatcher.redis_is_new", num_jobs=num_jobs)

    def top_up(self) -> None:
        """Fill the queues' ready windows: with hints that were lost, then with jobs that wait in Postgres."""
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
                jobs = dispatch_queries.take_waiting(self._db, depth.queue, num_new, self._rota, most_batch=most_batch)
                ahead = self._ahead(jobs) if in_redis else frozenset()
                self._announce(depth.queue, jobs, "dispatcher.announced", ahead)

    def _ahead(self, job_ids: list[str]) -> Set[str]:
        """Return those of the jobs that need not stand in line behind the window."""
        entries = [
            entry for entry in read_entries(self._db, job_ids) if entry.class_rank != dispatch_queries.BATCH_RANK
        ]
        return within_share(self._db, entries, self._lately, are_announced=True) if entries else frozenset()

    def _announce(self, queue: str, job_ids: list[str], event: str, ahead: Set[str] = frozenset()) -> None:
        """Publish hints for jobs that were just marked as announced; what fails here is found to be lost later."""
        if job_ids:
            model, _, version = queue.rpartition("@")
            if queue not in self._tasks:
                self._tasks[queue] = dispatch_queries.task_of(self._db, job_ids[0])
            shadow = shadow_name(self._tasks[queue], model, int(version))
            self._hints.publish([Hint(job_id, queue, shadow, job_id in ahead) for job_id in job_ids])
            log.debug(event, queue=queue, num_jobs=len(job_ids))

    def sweep_leases(self) -> bool:
        """Take jobs back from workers that are gone, a piece of them; return whether there may be more."""
        # Asked beforehand, or a silence that ends just now would be noticed after the leases that it cost.
        self._db.ping()
        self._hearing.heard(time.monotonic())
        blame = self._hearing.blames(time.monotonic())
        try:
            swept = sweeps.sweep_leases(self._db, SWEEP_ROWS, blame=blame)
        except Unavailable:
            self._hearing.refused(time.monotonic())
            raise
        if swept.requeued or swept.ended:
            counts = {"requeued": swept.requeued, "failed": swept.failed, "cancelled": swept.cancelled}
            log.info("dispatcher.leases_swept", blamed=blame, **counts)
        self._nudge(swept.ended)
        return swept.num_jobs >= SWEEP_ROWS

    def expire_deadlines(self) -> bool:
        """End jobs whose time is up, a piece of them; return whether there may be more."""
        expired = sweeps.expire_overdue(self._db, SWEEP_ROWS, grace_s=2 * self._settings.lease_s)
        if expired:
            log.info("dispatcher.expired", num_jobs=len(expired))
        self._nudge(expired)
        return len(expired) >= SWEEP_ROWS

    def _nudge(self, job_ids: Iterable[str]) -> None:
        """Let open streams of these jobs end now instead of at their next look into Postgres."""
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
        # Of itself alone: to start it anew mends no Postgres.
        health = HealthServer(
            settings.health_host, settings.dispatcher_port, CollectorRegistry(), {"loop": dispatcher.pulse.check}
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
