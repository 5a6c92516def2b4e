"""Celery's worker around a worker runtime: one queue, the engine's thread pool, admission control, events for Flower.

It is started in this process, not by Celery's command line, because its pool belongs to a runtime. Every stop signal
starts the same warm drain; a second one ends it at once.
"""

import signal
import warnings
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery, signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning
from celery.platforms import EX_OK
from celery.worker import state

from headrace.store.redis.celery_queue import TASK, celery_app
from headrace.store.settings import Settings
from headrace.store.stop_signals import on_stop_signals
from headrace.workers.celery.consumer import admission_step, only_reading, take_without_acknowledging
from headrace.workers.celery.thread_pool import pool_class
from headrace.workers.worker_runtime import WorkerRuntime

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


class _Worker(Worker):  # type: ignore[misc]  # celery ships no annotations
    """Celery's worker without Celery's signal handlers: ``drain_on_signals`` has installed ours."""

    def install_platform_tweaks(self, worker: Worker) -> None:
        """Leave the handlers as they are."""


def drain_on_signals(runtime: WorkerRuntime) -> None:
    """Install signal handlers that start a drain. A second signal ends the drain at once."""

    def stop() -> None:
        state.should_stop = EX_OK
        runtime.drain.request()

    on_stop_signals(stop, _SIGNALS)


def build_worker(settings: Settings, runtime: WorkerRuntime, *, queue: str, hostname: str, concurrency: int) -> Worker:
    """Return Celery's worker, ready for ``start()``. It takes messages of ``queue`` only."""
    app = celery_app(settings)
    _register_task(app, runtime.job_runner.run)
    take_without_acknowledging(app, runtime.metrics.junk.inc)
    if settings.celery_control != "full":
        only_reading(app)
    app.steps["consumer"].add(admission_step(runtime.admission, runtime.adapters, runtime.reported_runner))
    _connect_signals(runtime, queue)
    return _worker(app, runtime, queue=queue, hostname=hostname, concurrency=concurrency)


def _register_task(app: Celery, run: Callable[[str], object]) -> None:
    """Add the one Celery task: its message carries only a job id, and it has no result. ``run`` raises nothing."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator]  # celery ships no annotations
    def headrace_run(job_id: str) -> None:
        run(job_id)


# The warning is about pickled messages, which are never read here, and advises an option that does not exist here.
_SUPERUSER = "You're running the worker with superuser privileges"


def _worker(app: Celery, runtime: WorkerRuntime, *, queue: str, hostname: str, concurrency: int) -> Worker:
    warnings.filterwarnings("ignore", _SUPERUSER, SecurityWarning)
    return _Worker(
        app,
        hostname=hostname,
        queues=[queue],
        pool_cls=pool_class(runtime),
        concurrency=concurrency,
        prefetch_multiplier=1,
        # Only Flower reads events, and it turns them on itself. Each event costs a message through Redis.
        task_events=False,
        quiet=True,
        loglevel="WARNING",
        # Workers of one queue exchange no messages: Postgres decides which worker runs a job.
        without_gossip=True,
        without_mingle=True,
    )


def _connect_signals(runtime: WorkerRuntime, queue: str) -> None:
    """Connect Celery's signals to the runtime. ``weak=False``, or the local functions would be collected."""

    def on_setup_logging(**_: Any) -> None:
        """Do nothing. With a receiver Celery does not change the logging configuration."""

    def on_ready(**_: Any) -> None:
        log.info("worker_ready", queue=queue)

    def on_revoked(request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
        if not terminated and not expired:
            # Discarded before it ran: without an outcome the dispatcher would announce it again and again.
            runtime.end_revoked(request.id)

    signals.setup_logging.connect(on_setup_logging, weak=False)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.task_revoked.connect(on_revoked, weak=False)
