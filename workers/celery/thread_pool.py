"""Celery's thread pool for jobs that wait on an engine: one thread for each job, most of them asleep.

The stock ``threads`` pool raises on revoke, and it blocks the event loop while it drains, so that heartbeats of a
stopping worker wait for its last job. This pool passes a revoke to the engine, keeps the event loop running during a
drain, and hands back the remaining jobs when the drain's time is over. It knows jobs by their Celery task id.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import count
from typing import Any, Protocol

import structlog
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import apply_target
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import Ignore
from celery.exceptions import Retry as RetryLater
from celery.worker.request import Terminated

from headrace.store.failpoints import failpoint
from headrace.store.jobs.claims import Finish, Unclaimed
from headrace.store.redis.celery_queue import TASK
from headrace.store.schema.job_states import JobState
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.outcome import Retry

log = structlog.get_logger(__name__)

PUMP_S = 0.05
"""Longest time between two turns of the event loop during a drain."""

SETTLE_S = 1.0
"""Time for threads to end after their jobs were handed back."""

HAND_BACK_S = 0.25
"""Time for handing back, so that the jobs are in the queue again when the drain's time is over."""

Scalar = str | int | float | bool


class Drain:
    """The time limit of a drain: handing back is done ``drain_s`` after the first request to stop.

    A second request ends the drain at once. ``request`` may be called from any thread.
    """

    def __init__(self, drain_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s = max(drain_s / 2, drain_s - HAND_BACK_S)
        self._clock = clock
        self._deadline: float | None = None
        self.requested = threading.Event()

    def request(self) -> None:
        """Ask to stop; asking again cuts the wait short."""
        now = self._clock()
        self._deadline = now if self._deadline is not None else now + self._wait_s
        self.requested.set()

    @property
    def remaining_s(self) -> float:
        """Seconds that running jobs still have; starts the drain if it was not requested yet."""
        if self._deadline is None:
            self.request()
        return max(0.0, (self._deadline or 0.0) - self._clock())


class WorkerProcess(Protocol):
    """The process of the pool: ``workers.worker_runtime.WorkerRuntime``."""

    admission: EngineAdmission
    drain: Drain

    def run(self, job_id: str) -> Finish | Retry | Unclaimed | None:
        """Run a job and return its outcome, as ``JobRunner.run``. Raises nothing."""
        ...

    def revoke(self, task_id: str) -> None:
        """Cancel the job that this task runs."""
        ...

    def hand_back(self) -> None:
        """Give every job that still runs back to the queue."""
        ...

    def engine_info(self) -> Mapping[str, Scalar]:
        """Return the engine's statistics as plain scalars."""
        ...


class JobFailed(Exception):
    """A job or an attempt failed or expired: the error's code, without any of its owner's data."""


class PoolJob:
    """One task in flight, as Celery's ``Request`` sees it: it can be terminated."""

    def __init__(self, number: int, task_id: str, revoke: Callable[[str], None]) -> None:
        self.number = number
        self.ended: Future[None] = Future()
        self._task_id = task_id
        self._revoke = revoke

    def terminate(self, _signal: object = None) -> None:
        """Cancel the job in the engine; its thread ends by itself, with the outcome."""
        self._revoke(self._task_id)


class EnginePool(ThreadPool):  # type: ignore[misc]  # celery ships no annotations
    """The worker's pool. ``process`` is set by ``pool_class``, because Celery makes the instance."""

    process: WorkerProcess

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._numbers = count(1)
        self._jobs: dict[int, PoolJob] = {}
        self._hub: Any = None

    def register_with_event_loop(self, loop: Any) -> None:
        """Remember the event loop, which must run during a drain."""
        self._hub = loop

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        correlation_id: str = "",
        **_: Any,
    ) -> PoolJob:
        """Run ``target`` on its own thread; for a job, run the job instead.

        Celery's target would decode the message again and do the work for results, callbacks, retries and signals,
        none of which the task has.
        """
        failpoint("message.taken")
        if args and args[0] == TASK:
            target, args = self._run_job, (correlation_id,)
        ticket = self.process.admission.take()
        job = PoolJob(next(self._numbers), correlation_id, self.process.revoke)
        self._jobs[job.number] = job

        def run() -> None:
            with self.process.admission.working_on(ticket):
                # Celery's ``pid`` is the job's number here; ``terminate_job`` gets it.
                apply_target(target, args, kwargs, callback, accept_callback, pid=job.number)

        def done(_future: Future[None]) -> None:
            del self._jobs[job.number]
            self.process.admission.give_back(ticket)
            job.ended.set_result(None)

        self.executor.submit(run).add_done_callback(done)
        return job

    def _run_job(self, job_id: str) -> tuple[int, Any, float]:
        """Run a job and return what Celery's tracer would: whether it failed, its result or error, its duration.

        Celery sends it to Flower as an event.
        """
        began = time.monotonic()
        error = celery_error(self.process.run(job_id))
        took_s = time.monotonic() - began
        return (0, "None", took_s) if error is None else (1, _with_info(error), took_s)

    def terminate_job(self, pid: int, signal: object = None) -> None:
        """Cancel the job with this number; Celery calls it for a revoke with ``terminate``."""
        job = self._jobs.get(pid)
        if job is not None:
            job.terminate(signal)

    def on_stop(self) -> None:
        """Let running jobs continue for the drain's time, then hand them back. The event loop runs meanwhile."""
        self.process.admission.close()
        self._turn_until_empty(lambda: self.process.drain.remaining_s)
        if self._jobs:
            self.process.hand_back()
            deadline = time.monotonic() + SETTLE_S
            self._turn_until_empty(lambda: deadline - time.monotonic())
        self.executor.shutdown(wait=False, cancel_futures=True)
        if self._jobs:
            log.warning("pool_threads_left", num_threads=len(self._jobs))

    def _turn_until_empty(self, remaining_s: Callable[[], float]) -> None:
        while (jobs := list(self._jobs.values())) and (left_s := remaining_s()) > 0:
            wait([job.ended for job in jobs], timeout=min(PUMP_S, left_s), return_when=FIRST_COMPLETED)
            self._turn()
        self._turn()

    def _turn(self) -> None:
        """Run the timers (heartbeats) and callbacks of Celery's event loop, without its poll."""
        if self._hub is None:
            return
        try:
            self._hub.fire_timers()
            for callback in self._hub._pop_ready():  # noqa: SLF001 - no public way to turn the hub without polling
                callback()
        except Exception as error:  # noqa: BLE001 - a broker that is away must not stop the drain
            log.warning("drain_turn_failed", error=type(error).__name__)

    def _get_info(self) -> dict[str, Any]:
        """Return the values of ``inspect stats`` and of Flower's Pool tab."""
        return {**super()._get_info(), "in-flight": len(self._jobs), **self.process.engine_info()}


def celery_error(stored: Finish | Retry | Unclaimed | None) -> Exception | None:
    """Return the exception that shows a job's outcome to Celery, None if the job succeeded.

    A job that is in the queue is a retry. Celery ignores what others tell: of a job that runs or ran elsewhere its
    worker, of a lost one the dispatcher.
    """
    error: Exception | None
    match stored:
        case None | Unclaimed(state=JobState.RUNNING | JobState.SUCCEEDED):
            error = Ignore()
        case Retry(code=code):
            error = RetryLater(exc=JobFailed(code))
        case Finish(state=JobState.SUCCEEDED):
            error = None
        case Unclaimed(state=JobState.QUEUED):
            error = RetryLater(exc=JobFailed("not_claimed"))
        case Finish(state=JobState.CANCELLED) | Unclaimed(state=JobState.CANCELLED):
            error = Terminated("cancelled")
        case _:
            error = JobFailed((stored.error or {}).get("code", stored.state.value))
    return error


def _with_info(error: Exception) -> ExceptionInfo:
    """Return the exception as Celery's tracer gives it. Its traceback has this line alone."""
    try:
        raise error
    except type(error):
        info = ExceptionInfo()
    # ExceptionInfo wraps the exception for other processes; events would show only the wrapper's name.
    info.exception = error
    return info


def pool_class(process: WorkerProcess) -> type[EnginePool]:
    """Return the pool to give to Celery's worker, bound to this process."""
    return type("EnginePool", (EnginePool,), {"process": process, "__module__": __name__})
