"""Celery's events for attempts that began without a Celery message, so that Flower shows them as it shows the others.

A worker takes jobs from the fast lane's list and from Postgres beside Celery, which sends events of messages alone.
Events go through the worker's own dispatcher, on its event loop, and only while somebody listens.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from celery.exceptions import Ignore
from celery.exceptions import Retry as RetryLater
from celery.utils.saferepr import saferepr
from celery.worker.request import Terminated

from headrace.store.jobs.claims import Finish, Unclaimed
from headrace.workers.celery.thread_pool import celery_error
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry

Send = Callable[..., None]
Outcome = Finish | Retry | Unclaimed | None


class Runner(Protocol):
    """Runs jobs: ``workers.runs.job_runner.JobRunner``. Both raise nothing, and return the outcome."""

    def run(self, job_id: str, *, urgent: bool = False) -> Outcome:
        """Claim and run a job."""
        ...

    def run_claimed(self, attempt: Attempt) -> Outcome:
        """Run an attempt."""
        ...


class ReportedRunner:
    """A runner that reports each job to Celery's event receivers. ``shadow``: the name in Flower."""

    def __init__(self, runner: Runner, shadow: str) -> None:
        self._runner = runner
        self._shadow = shadow
        self._send: Send = _nobody

    def attach(self, send: Send) -> None:
        """Set the function that sends an event: its type and its fields. Callable from any thread; must not raise."""
        self._send = send

    def run(self, job_id: str, *, urgent: bool = False) -> Outcome:
        """As ``Runner.run``."""
        return self._reported(job_id, lambda: self._runner.run(job_id, urgent=urgent))

    def run_claimed(self, attempt: Attempt) -> Outcome:
        """As ``Runner.run_claimed``."""
        return self._reported(attempt.job_id, lambda: self._runner.run_claimed(attempt))

    def _reported(self, job_id: str, run: Callable[[], Outcome]) -> Outcome:
        send = self._send
        send("task-received", uuid=job_id, name=self._shadow, args=job_id, kwargs="{}", root_id=job_id, retries=0)
        send("task-started", uuid=job_id)
        began = time.monotonic()
        outcome = run()
        error = celery_error(outcome)
        if not isinstance(error, Ignore):
            kind, fields = _end(error, time.monotonic() - began)
            send(kind, uuid=job_id, **fields)
        return outcome


def _end(error: Exception | None, runtime_s: float) -> tuple[str, dict[str, Any]]:
    """Return the event that Celery would send for a message with this end."""
    if error is None:
        return "task-succeeded", {"result": "None", "runtime": runtime_s}
    if isinstance(error, RetryLater):
        return "task-retried", {"exception": saferepr(error), "traceback": ""}
    if isinstance(error, Terminated):
        return "task-revoked", {"terminated": True, "signum": None, "expired": False}
    return "task-failed", {"exception": saferepr(error), "traceback": ""}


def _nobody(_kind: str, **_fields: Any) -> None:
    """Nothing is attached."""
