"""The dispatcher runs the periodic duties that no request triggers: ``python -m workers.dispatcher``.

One process leads, a standby waits for a lock in Postgres. Each duty is a decision and one statement. It may safely run
twice, and its failure does not affect other duties: the failure is logged in one line, and the duty is retried at its
next turn. The dispatcher runs no model; the meaning of job states is ``store``'s.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from store import failpoints
from store.db.database import Database, check_schema
from store.db.leader_election import Leadership
from store.db.tls import check_transport
from store.encryption_keys import open_vault
from store.errors import HeadraceError, SettingsError, Unavailable
from store.jobs import sweeps
from store.key_rotation.master_key_check import check_keys
from store.logs import configure_logging
from store.metrics.dispatcher_metrics import DispatcherMetrics
from store.metrics.registry import begin
from store.redis.connection import connect
from store.scheduling.work_probe import PendingWork, probe
from store.settings import Settings, load_settings, require_services
from store.stop_signals import on_stop_signals
from store.streams import stream_log
from store.streams.stream_log import StreamPublisher
from store.tracing.tracing import OFF, Tracing, open_tracing
from store.webhooks.addresses import parse_networks
from workers.dispatcher.audit_heads import AuditHeads
from workers.dispatcher.autoscaler import Autoscaler
from workers.dispatcher.job_sweeper import JobSweeper, OutageGrace
from workers.dispatcher.queue_gauges import QueueMeasurement
from workers.dispatcher.queue_stats import QueueStats
from workers.dispatcher.ready_window import ReadyWindow
from workers.dispatcher.retention import RetentionThread
from workers.dispatcher.rollout_keeper import RolloutKeeper
from workers.health import HealthServer, LoopHeartbeat
from workers.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

LOOK_S = 0.1
IDLE_LOOK_S = 0.25
TOP_UP_S = 0.1
COUNT_S = 0.25
LEAD_S = 2.0
MEASURE_S = 2.0
ROLLOUT_S = 2.0
# The webhook sender is notified when deliveries are due; it polls as well, in case a notification is lost.
_SENDER_LOOKS_S = 1.0
# Duties that are due within this time run at once, so that the process wakes up once for all of them.
_TOGETHER_S = 0.05
_STOP_S = 0.5
# A duty may wait for Postgres. After this time it counts as hung, and a supervisor may restart the process.
_LONGEST_TURN_S = 60.0
_RETRY_S = 1.0


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

    def __init__(self, settings: Settings, tracing: Tracing = OFF) -> None:
        # Checked here, although the sender uses it: a malformed setting must stop the process at its start.
        parse_networks(settings.webhook_allow_networks)
        self._settings = settings
        self._tracing = tracing
        self.metrics = DispatcherMetrics(tracing)
        vault = open_vault(settings)
        self._db = Database(settings.database_url, application_name="headrace-dispatcher", vault=vault)
        self._redis = connect(settings.redis_url, timeout_s=2.0)
        streams = StreamPublisher(self._redis, maxlen=settings.stream_max_frames, ttl_s=settings.stream_ttl_s)
        self.ready_window = ReadyWindow(
            self._db,
            settings,
            start_generation=partial(stream_log.start_generation, self._redis),
            forget_generation=partial(stream_log.forget_generation, self._redis),
        )
        self._outage_grace = OutageGrace(settings.lease_s, settings.sweep_s, time.monotonic())
        self.sweeper = JobSweeper(
            self._db, streams, self._outage_grace, self.metrics, lease_s=settings.lease_s, tracing=tracing
        )
        self._stopping = threading.Event()
        self.heartbeat = LoopHeartbeat(_LONGEST_TURN_S)
        self.metrics.turn_age.set_function(lambda: self.heartbeat.age_s)
        self._measurement = QueueMeasurement(self._db, self.metrics, num_tenants=settings.metrics_tenants)
        self._autoscaler = Autoscaler(self._db, settings, self.metrics)
        self._counter = QueueStats(self._db, on_interval=self._autoscaler.observe)
        self._due = PendingWork()
        self._sender: WebhookSender | None = None
        self._leadership: Leadership | None = None
        self._look = Duty("look", LOOK_S, self.look)
        self._duties = (
            Duty("check_lead", min(settings.sweep_s, LEAD_S), self._check_leadership),
            Duty("notice_wipe", min(settings.sweep_s, 1.0), self.ready_window.notice_wipe),
            self._look,
            Duty("top_up", TOP_UP_S, self.ready_window.top_up, lambda: self._due.jobs),
            Duty("count_queued", COUNT_S, self._counter.turn, lambda: self._due.changes or self._counter.has_news),
            Duty("sweep_leases", settings.sweep_s, self.sweeper.sweep_leases),
            Duty("expire_deadlines", settings.sweep_s, self.sweeper.expire_deadlines),
            Duty("expire_approvals", settings.sweep_s, self.sweeper.expire_approvals),
            Duty("fail_rejected", settings.sweep_s, self.sweeper.fail_rejected),
            Duty("answer_sharers", settings.sweep_s, self.sweeper.answer_sharers, lambda: self._due.sharers),
            Duty("measure", MEASURE_S, self._measurement.turn, lambda: settings.dispatcher_port != 0),
            Duty("autoscale", MEASURE_S, self._autoscaler.turn, lambda: self._autoscaler.is_needed),
            Duty("advance_rollouts", ROLLOUT_S, self._rollout_keeper().turn),
            Duty("tell_audit_heads", settings.audit_head_s, AuditHeads(self._db, settings.audit_head_key).log_heads),
        )

        begin(self.metrics.duty_failures, *(duty.name for duty in self._duties))

    def _rollout_keeper(self) -> RolloutKeeper:
        settings = self._settings
        return RolloutKeeper(
            self._db, self.metrics, shadow_tenant=settings.shadow_tenant, shadow_sources=settings.shadow_sources
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
        self.ready_window.close()
        self._redis.close()
        self._db.close()
        self._tracing.stop()

    def _lead(self, lead: Leadership) -> None:
        """Run the duties until stopped, or until the leadership is lost or Postgres is away. Raises Unavailable."""
        log.info("dispatcher.leading")
        self.metrics.leading.set(1)
        self._leadership = lead
        self._sender = sender = WebhookSender(
            self._db,
            self._settings,
            metrics=self.metrics,
            look_every_s=_SENDER_LOOKS_S,
            tracing=self._tracing,
        )
        forgetting = RetentionThread(self._db, self._settings, partial(stream_log.forget, self._redis))
        sender.start()
        forgetting.start()
        try:
            while not self._stopping.is_set():
                next_due_at = self._run_due()
                self._stopping.wait(max(0.0, next_due_at - time.monotonic()))
        finally:
            self._sender = self._leadership = None
            self.metrics.leading.set(0)
            self.metrics.clear()
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
            self.metrics.duty_failures.labels(duty.name).inc()
            # Logged once, not at every try of a long outage.
            if not duty.is_failing:
                log.warning("dispatcher.duty_failed", duty=duty.name, error=error.message)
            duty.is_failing = True
            if error.code == "database_unavailable":
                raise
        except Exception:
            # A defect in one duty must not stop the others.
            self.metrics.duty_failures.labels(duty.name).inc()
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


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = require_services(load_settings())
        configure_logging(settings.log_level)
        check_transport(settings)
        failpoints.install(settings.failpoints)
        tracing = open_tracing("headrace-dispatcher", f"{socket.gethostname()}:{os.getpid()}")
        dispatcher = Dispatcher(settings, tracing)
        # Only the loop is checked: a restart would not repair Postgres.
        health = HealthServer(
            settings.health_host,
            settings.dispatcher_port,
            dispatcher.metrics.render,
            {"loop": dispatcher.heartbeat.check},
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
