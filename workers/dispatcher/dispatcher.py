"""The dispatcher runs the periodic duties that no request triggers: ``python -m headrace.workers.dispatcher``.

One process leads, a standby waits for a lock in Postgres. Each duty is a decision and one statement. It may safely run
twice, and neither its failure nor its wait for a lock affects other duties (``store.keeper``). The
dispatcher runs no model; the meaning of job states is ``store``'s.
"""

import os
import socket
import sys
import threading
import time
from functools import partial
from typing import Any

import structlog

from headrace.assembly import parts as parts_of_features
from headrace.store import failpoints
from headrace.store.db.database import Database, check_schema
from headrace.store.db.leader_election import Leadership
from headrace.store.db.seal_part import check_seal, open_seal
from headrace.store.db.tls import check_transport
from headrace.store.errors import HeadraceError, SettingsError
from headrace.store.jobs import sweeps
from headrace.store.keeper import Duty, Keeper
from headrace.store.logs import configure_logging
from headrace.store.metrics.dispatcher_metrics import DispatcherMetrics
from headrace.store.redis.celery_queue import celery_app
from headrace.store.redis.connection import connect
from headrace.store.scheduling.work_probe import PendingWork, WorkProbe
from headrace.store.settings import Settings, load_settings, require_services
from headrace.store.stop_signals import on_stop_signals
from headrace.store.streams import stream_log
from headrace.store.streams.stream_log import StreamPublisher
from headrace.store.tracing.tracing import OFF, Tracing, open_tracing
from headrace.workers.dispatcher.autoscaler import Autoscaler
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart
from headrace.workers.dispatcher.job_sweeper import JobSweeper, OutageGrace
from headrace.workers.dispatcher.lost_attempts import LostAttemptEvents
from headrace.workers.dispatcher.queue_gauges import QueueMeasurement
from headrace.workers.dispatcher.queue_stats import QueueStats
from headrace.workers.dispatcher.ready_window import ReadyWindow
from headrace.workers.dispatcher.row_duties import row_duties
from headrace.workers.health import OK, HealthServer, LoopHeartbeat

log = structlog.get_logger(__name__)

LOOK_S = 0.1
IDLE_LOOK_S = 0.25
TOP_UP_S = 0.1
COUNT_S = 0.25
LEAD_S = 1.0
START_S = 0.25
MEASURE_S = 2.0
LOCK_TIMEOUT_S = 2.0
"""A duty that waits longer for a row gives up, and tries again: the row may be free then, and others are not late."""
_STOP_S = 0.5
# The loop that keeps the lead counts as hung after this time, and a supervisor may restart the process.
_LONGEST_TURN_S = 60.0
# The duties have a thread each; features have some of their own.
_POOL_SIZE = 32


class Dispatcher:
    """The duties and their loop. ``stop`` may be called from a signal handler or another thread."""

    def __init__(self, settings: Settings, tracing: Tracing = OFF) -> None:
        self._settings = settings
        self._tracing = tracing
        self.metrics = DispatcherMetrics(tracing)
        seal = open_seal(settings)
        self._db = Database(
            settings.database_url, pool_size=_POOL_SIZE, application_name="headrace-dispatcher", seal=seal
        )
        self._redis = connect(settings.redis_url, timeout_s=2.0)
        streams = StreamPublisher(self._redis, ttl_s=settings.stream_ttl_s)
        self.ready_window = ReadyWindow(
            self._db,
            settings,
            start_generation=partial(stream_log.start_generation, self._redis),
            forget_generation=partial(stream_log.forget_generation, self._redis),
        )
        self._outage_grace = OutageGrace(settings.lease_s, settings.sweep_s, time.monotonic())
        self.sweeper = JobSweeper(
            self._db,
            streams,
            self._outage_grace,
            self.metrics,
            lease_s=settings.lease_s,
            tracing=tracing,
            report_lost=LostAttemptEvents(celery_app(settings)).send,
        )
        self._stopping = threading.Event()
        self.heartbeat = LoopHeartbeat(_LONGEST_TURN_S)
        self._measurement = QueueMeasurement(self._db, self.metrics, num_tenants=settings.metrics_tenants)
        self._autoscaler = Autoscaler(self._db, settings, self.metrics)
        self._counter = QueueStats(self._db, on_interval=self._autoscaler.observe)
        self._due = PendingWork()
        parts = parts_of_features("dispatcher", DispatcherPart)
        context = DispatcherContext(
            self._db, settings, self.metrics, tracing, self.sweeper.nudge, partial(stream_log.forget, self._redis)
        )
        self._features = [part.build(context) for part in parts]
        self._probe = WorkProbe(self._db, {kind: query for part in parts for kind, query in part.probes.items()})
        self._look = Duty("look", LOOK_S, self.look)
        self.keeper = Keeper(self._duty_groups(), self.metrics.duties.note)
        self.metrics.duties.begin(duty.name for duty in self.keeper.duties)
        self.metrics.turn_age.set_function(lambda: max(self.heartbeat.age_s, self.keeper.longest_s))

    def _duty_groups(self) -> tuple[tuple[Duty, ...], ...]:
        """Return the duties. Those that share state in memory are one group; no other duty waits for them."""
        settings, sweeper = self._settings, self.sweeper
        sweep_s = settings.sweep_s
        locks: dict[str, Any] = {"lock_timeout_s": LOCK_TIMEOUT_S}
        return (
            (
                Duty("notice_wipe", min(sweep_s, 1.0), self.ready_window.notice_wipe),
                self._look,
                Duty("top_up", TOP_UP_S, self.ready_window.top_up, lambda: self._due.jobs),
            ),
            (
                Duty("count_queued", COUNT_S, self._counter.turn, lambda: self._due.changes or self._counter.has_news),
                Duty("autoscale", MEASURE_S, self._autoscaler.turn, lambda: self._autoscaler.is_needed),
            ),
            (Duty("sweep_leases", sweep_s, sweeper.sweep_leases, **locks),),
            (Duty("expire_deadlines", sweep_s, sweeper.expire_deadlines, **locks),),
            (Duty("start_due", START_S, sweeper.start_due, lambda: self._due.starts, **locks),),
            (Duty("fail_rejected", sweep_s, sweeper.fail_rejected, **locks),),
            (Duty("measure", MEASURE_S, self._measurement.turn, lambda: settings.dispatcher_port != 0),),
            *row_duties(self._db, settings),
            *(tuple(group) for work in self._features for group in work.duties),
        )

    def stop(self) -> None:
        """Make ``run`` return within about a second."""
        self._stopping.set()

    def check(self) -> str:
        """Return ``ok``, or what has been running for so long that it counts as hung."""
        hung = self.keeper.check()
        return self.heartbeat.check() if hung == OK else hung

    def run(self) -> None:
        """Lead, or wait to lead, until stopped. Raises SettingsError for a wrong encryption key. Call it once."""
        self.keeper.start()
        try:
            self._lead_in_turn()
        finally:
            self.keeper.stop()

    def _lead_in_turn(self) -> None:
        while not self._stopping.is_set():
            self.heartbeat.beat()
            try:
                check_schema(self._db)
                check_seal(self._db)
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
        """Let the duties run until stopped, or until the lead is lost. Raises Unavailable."""
        log.info("dispatcher.leading")
        self.metrics.leading.set(1)
        for work in self._features:
            work.begin_leading()
        try:
            look_s = min(self._settings.sweep_s, LEAD_S)
            self.keeper.keep(lead, self._stopping, look_s, on_look=self.heartbeat.beat)
        finally:
            self.metrics.leading.set(0)
            self.metrics.clear()
            for work in self._features:
                work.clear()
                work.end_leading(_STOP_S)
            log.info("dispatcher.stopped_leading")

    def look(self) -> None:
        """Ask Postgres which work is due: the only query while there is none."""
        # If the query fails, all duties run.
        self._due = PendingWork()
        self._due = due = self._probe.look()
        self._look.period_s = LOOK_S if due.jobs or due.of_features else IDLE_LOOK_S
        for work in self._features:
            work.notice(due)


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = require_services(load_settings())
        configure_logging(settings.log_level)
        check_transport(settings)
        failpoints.install(settings.failpoints)
        tracing = open_tracing("headrace-dispatcher", f"{socket.gethostname()}:{os.getpid()}")
        dispatcher = Dispatcher(settings, tracing)
        # Only the loop and the duties are checked: a restart would not repair Postgres.
        health = HealthServer(
            settings.health_host,
            settings.dispatcher_port,
            dispatcher.metrics.render,
            {"loop": dispatcher.check},
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
