"""Celery's worker around a host: one queue, the engine's pool, the admission gate, events for Flower if it asks.

Started in this process rather than by Celery's command line, because the pool is a class that belongs to a host. Every
signal that asks to stop means the same warm drain; asking twice cuts it short.
"""

import signal
import warnings
from typing import Any

import structlog
from celery import Celery, signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning
from celery.platforms import EX_OK
from celery.worker import state

from store.redis.celery_queue import celery_app
from store.settings import Settings
from store.stop_signals import on_stop_signals
from workers.celery.celery_task import register
from workers.celery.no_ack_consumer import take_without_acknowledging
from workers.celery.remote_control import only_reading
from workers.celery.thread_pool import pool_class
from workers.runs.engine_admission import admission_step
from workers.worker_runtime import Host

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


class _Worker(Worker):  # type: ignore[misc]  # celery ships no annotations
    """Celery's worker without Celery's signal handlers: ``stop_when_told`` has installed ours."""

    def install_platform_tweaks(self, worker: Worker) -> None:
        """Leave the handlers as they are."""


def stop_when_told(host: Host) -> None:
    """Drain when a signal asks to stop, from now on. A second request cuts the drain short."""

    def stop() -> None:
        state.should_stop = EX_OK
        host.drain.request()

    on_stop_signals(stop, _SIGNALS)


def build_worker(settings: Settings, host: Host, *, queue: str, hostname: str, concurrency: int) -> Worker:
    """Return Celery's worker, ready to ``start()``; it takes messages of ``queue`` only."""
    app = celery_app(settings)
    register(app, host.executor.run)
    take_without_acknowledging(app, host.counters.junk.inc)
    if settings.celery_control != "full":
        only_reading(app)
    app.steps["consumer"].add(admission_step(host.admission))
    _connect_signals(host, queue)
    return _worker(app, host, queue=queue, hostname=hostname, concurrency=concurrency)


# Its advice is an option that there is none of here, and its reason pickled messages, which are never read.
_SUPERUSER = "You're running the worker with superuser privileges"


def _worker(app: Celery, host: Host, *, queue: str, hostname: str, concurrency: int) -> Worker:
    warnings.filterwarnings("ignore", _SUPERUSER, SecurityWarning)
    return _Worker(
        app,
        hostname=hostname,
        queues=[queue],
        pool_cls=pool_class(host),
        concurrency=concurrency,
        prefetch_multiplier=1,
        # Flower turns them on, every five seconds; nobody else reads them, and each costs a message through Redis.
        task_events=False,
        quiet=True,
        loglevel="WARNING",
        # Workers of one queue have nothing to tell one another: Postgres decides who holds a job.
        without_gossip=True,
        without_mingle=True,
    )


def _connect_signals(host: Host, queue: str) -> None:
    """Let Celery's signals reach the host. They are held weakly unless told otherwise."""

    def on_setup_logging(**_: Any) -> None:
        """A receiver is enough to keep Celery's hands off the logging that is configured already."""

    def on_ready(**_: Any) -> None:
        log.info("worker_ready", queue=queue)

    def on_revoked(request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
        if not terminated and not expired:
            # Discarded before it ran: without an outcome the dispatcher would announce it for ever.
            host.end_revoked(request.id)

    signals.setup_logging.connect(on_setup_logging, weak=False)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.task_revoked.connect(on_revoked, weak=False)
